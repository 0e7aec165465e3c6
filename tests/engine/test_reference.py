"""The oracle itself, against PyTorch's functions and against loops written out."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from leanconv.engine import reference
from leanconv.program import Input, Op, Output, Program, ProgramError, Step, Value, pack_bits
from tests.engine.builder import Builder, check

RNG = np.random.default_rng(0)


def one_op(op, channels_in, channels_out, tensors=None, kind_in="real", size=(None, None), preprocessing=None):
    """A program of one operator; for a `bits` operand the input goes through a sign first."""
    values, ops, source = [Value("real", channels_in)], [], 0
    if kind_in == "bits":
        values.append(Value("bits", channels_in))
        ops.append(Op("elementwise", "sign", [0], steps=[Step("sign", value=1)]))
        source = 1
    values.append(Value("real", channels_out))
    op.inputs = [source]
    if op.kind == "flatten":
        op.output = len(values) - 1
    else:
        op.steps = [*op.steps, Step("store", value=len(values) - 1)]
    inputs = [Input("x", 0, channels_in, *size)]
    return Program(inputs, [Output("y", len(values) - 1, 4)], values, [*ops, op], tensors or {}, preprocessing)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


GEOMETRY = list(
    itertools.product(
        [(1, 1), (3, 3), (2, 3)], [(1, 1), (2, 1)], [(0, 0), (1, 2)], [(1, 1), (2, 1)], [(6, 4, 1), (6, 4, 2)]
    )
)


@pytest.mark.parametrize("kernel, stride, padding, dilation, channels", GEOMETRY)
def test_convolutions(kernel, stride, padding, dilation, channels):
    ins, outs, groups = channels
    x, w = normal(2, ins, 7, 8), normal(outs, ins // groups, *kernel)
    attrs = {
        "in_channels": ins,
        "out_channels": outs,
        "kernel": list(kernel),
        "stride": list(stride),
        "padding": [*padding, *padding],
        "dilation": list(dilation),
        "groups": groups,
    }
    taps = np.ascontiguousarray(w.transpose(0, 2, 3, 1))
    program = one_op(Op("conv", "c", [], attrs=attrs, tensors={"weight": "w"}), ins, outs, {"w": taps})
    expected = F.conv2d(torch.from_numpy(x), torch.from_numpy(w), None, stride, padding, dilation, groups)
    np.testing.assert_allclose(reference.run(program, [x])[0], expected.numpy(), rtol=1e-5, atol=1e-5)

    for pad_value in (0, -1, 1):
        packed = pack_bits(taps)
        op = Op("binary_conv", "b", [], attrs={**attrs, "pad_value": pad_value}, tensors={"weight": "w"})
        got = reference.run(one_op(op, ins, outs, {"w": packed}, "bits"), [x])[0]
        signs = torch.where(torch.from_numpy(x) >= 0, 1.0, -1.0)
        top, left = padding
        padded = F.pad(signs, (left, left, top, top), value=float(pad_value))
        weight = torch.where(torch.from_numpy(w) > 0, 1.0, -1.0)
        expected = F.conv2d(padded, weight, None, stride, 0, dilation, groups)
        assert np.array_equal(got, expected.numpy())


def test_uneven_padding():
    x, w = normal(1, 2, 4, 4), normal(3, 2, 2, 2)
    attrs = {"in_channels": 2, "out_channels": 3, "kernel": [2, 2], "stride": [1, 1], "dilation": [1, 1], "groups": 1}
    op = Op("conv", "c", [], attrs={**attrs, "padding": [0, 1, 2, 3]}, tensors={"weight": "w"})
    program = one_op(op, 2, 3, {"w": np.ascontiguousarray(w.transpose(0, 2, 3, 1))})
    expected = F.conv2d(F.pad(torch.from_numpy(x), (1, 3, 0, 2)), torch.from_numpy(w))
    np.testing.assert_allclose(reference.run(program, [x])[0], expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kernel, stride, padding, output_padding, dilation, groups",
    [
        ((2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1),
        ((3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1),
        ((3, 2), (1, 3), (1, 0), (0, 2), (2, 1), 2),
        ((1, 1), (1, 1), (0, 0), (0, 0), (1, 1), 4),
    ],
)
def test_transposed(kernel, stride, padding, output_padding, dilation, groups):
    x, w = normal(2, 4, 3, 5), normal(4, 8 // groups, *kernel)
    attrs = {
        "in_channels": 4,
        "out_channels": 8,
        "kernel": list(kernel),
        "stride": list(stride),
        "padding": list(padding),
        "output_padding": list(output_padding),
        "dilation": list(dilation),
        "groups": groups,
    }
    filters = [w[g * 4 // groups : (g + 1) * 4 // groups].transpose(1, 2, 3, 0) for g in range(groups)]
    op = Op("binary_conv_transpose", "t", [], attrs=attrs, tensors={"weight": "w"})
    got = reference.run(one_op(op, 4, 8, {"w": pack_bits(np.concatenate(filters))}, "bits"), [x])[0]
    signs, weight = (torch.where(torch.from_numpy(a) >= 0, 1.0, -1.0) for a in (x, w))
    expected = F.conv_transpose2d(signs, weight, None, stride, padding, output_padding, groups, dilation)
    assert np.array_equal(got, expected.numpy())


POOLS = list(itertools.product([2, 3], [1, 2, 3], [0, 1], [False, True], [(7, 7), (8, 5), (3, 10)]))


@pytest.mark.parametrize("kernel, stride, padding, ceil_mode, size", POOLS)
def test_pools(kernel, stride, padding, ceil_mode, size):
    x = normal(2, 3, *size)
    attrs = {"kernel": [kernel] * 2, "stride": [stride] * 2, "padding": [padding] * 2, "ceil_mode": ceil_mode}
    program = one_op(Op("max_pool", "p", [], attrs={**attrs, "dilation": [1, 1]}), 3, 3)
    expected = F.max_pool2d(torch.from_numpy(x), kernel, stride, padding, 1, ceil_mode)
    assert np.array_equal(reference.run(program, [x])[0], expected.numpy())
    for include in (False, True):
        program = one_op(Op("avg_pool", "p", [], attrs={**attrs, "count_include_pad": include}), 3, 3)
        expected = F.avg_pool2d(torch.from_numpy(x), kernel, stride, padding, ceil_mode, include)
        np.testing.assert_allclose(reference.run(program, [x])[0], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_dilated_max_pool_and_nan():
    x = normal(1, 2, 9, 9)
    x[0, 0, 5, 4] = np.nan
    attrs = {"kernel": [3, 2], "stride": [2, 1], "padding": [1, 1], "dilation": [2, 3], "ceil_mode": False}
    expected = F.max_pool2d(torch.from_numpy(x), (3, 2), (2, 1), (1, 1), (2, 3))
    got = reference.run(one_op(Op("max_pool", "p", [], attrs=attrs), 2, 2), [x])[0]
    assert np.array_equal(got, expected.numpy(), equal_nan=True) and np.isnan(got).any()


def test_dense_global_pool_and_flatten():
    x = normal(2, 5, 4, 3)
    got = reference.run(one_op(Op("global_avg_pool", "g", []), 5, 5), [x])[0]
    np.testing.assert_allclose(got[:, :, 0, 0], x.mean((2, 3)), rtol=1e-5, atol=1e-6)
    got = reference.run(one_op(Op("flatten", "f", [], attrs={"height": 4, "width": 3}), 5, 60, size=(4, 3)), [x])[0]
    assert np.array_equal(got[:, :, 0, 0], x.reshape(2, 60))
    w = normal(7, 5)
    attrs = {"in_channels": 5, "out_channels": 7}
    program = one_op(Op("linear", "l", [], attrs=attrs, tensors={"weight": "w"}), 5, 7, {"w": w})
    got = reference.run(program, [x[:, :, :1, :1].copy()])[0]
    np.testing.assert_allclose(got[:, :, 0, 0], x[:, :, 0, 0] @ w.T, rtol=1e-5, atol=1e-5)


def nearest(exact: Fraction) -> np.float32:
    """The float32 next to an exact number, of two equally near the one whose last bit is 0."""
    guess = np.float32(float(exact))
    around = [np.nextafter(guess, np.float32(end)) for end in (-np.inf, np.inf)]
    return min([guess, *around], key=lambda f: (abs(Fraction(float(f)) - exact), f.view(np.int32) & 1))


FLOATS = st.floats(-(2.0**40), 2.0**40, width=32).filter(lambda f: f == 0 or abs(f) > 2.0**-40)


@given(FLOATS, FLOATS, FLOATS)
@example(1 + 2.0**-12, 1 + 2.0**-12, 2.0**-30)  # the product lies between two floats, float64's sum with the bias, too
@example(1 + 2.0**-12, 1 + 2.0**-12, -(2.0**-40))
@example(2.0**24 + 2, 1 + 2.0**-23, 2.0**-40)
def test_a_fused_multiply_add_rounds_once(x, scale, bias):
    exact = Fraction(x) * Fraction(scale) + Fraction(bias)
    got = reference.fused_multiply_add(*(np.array([f], np.float32) for f in (x, scale, bias)))
    assert got[0] == nearest(exact)
    program = Builder(1)
    affine = Step("affine", scale=program.tensor(np.float32([scale])), bias=program.tensor(np.float32([bias])))
    program.output(program.elementwise(program.input, [affine, program.store(1)]))
    check(program.program(), np.full((1, 1, 1, 1), x, np.float32), exact=True)


def test_steps_follow_pytorch_bit_for_bit():
    x, scale, bias, slope = normal(2, 4, 3, 3), normal(4), normal(4), normal(4)
    t, per_channel = torch.from_numpy(x), (lambda a: torch.from_numpy(a).view(1, 4, 1, 1))
    tensors = {"scale": scale, "bias": bias, "slope": slope}
    cases = [
        (
            Step("affine", scale="scale", bias="bias"),  # fused: float64 holds the product, the sum is rounded once
            (t.double() * per_channel(scale).double() + per_channel(bias).double()).float(),
        ),
        (Step("affine", bias="bias"), t + per_channel(bias)),
        (Step("affine", scale="scale"), t * per_channel(scale)),
        (Step("clip", min=0.0), t.relu()),
        (Step("clip", min=-0.25, max=0.5), t.clamp(-0.25, 0.5)),
        (Step("clip", max=0.5), t.clamp(max=0.5)),
        (Step("prelu", slope="slope"), F.prelu(t, torch.from_numpy(slope))),
    ]
    for step, expected in cases:
        got = reference.run(one_op(Op("elementwise", "e", [], steps=[step]), 4, 4, tensors), [x])[0]
        assert np.array_equal(got, expected.numpy()), step
    for kind, function in (
        ("sigmoid", torch.sigmoid),
        ("silu", F.silu),
        ("hard_sigmoid", F.hardsigmoid),
        ("hard_swish", F.hardswish),
    ):
        got = reference.run(one_op(Op("elementwise", "e", [], steps=[Step(kind)]), 4, 4), [x * 4])[0]
        np.testing.assert_allclose(got, function(t * 4).numpy(), rtol=2e-6, atol=1e-6)


def test_add_and_mul_broadcast_points():
    values = [Value("real", 3), Value("real", 3), Value("real", 3), Value("real", 3)]
    ops = [
        Op("global_avg_pool", "g", [0], steps=[Step("store", value=1)]),
        Op(
            "elementwise",
            "e",
            [0],
            steps=[Step("mul", value=1), Step("store", value=2), Step("add", value=0), Step("store", value=3)],
        ),
    ]
    program = Program([Input("x", 0, 3, None, None)], [Output("y", 3, 4)], values, ops, {})
    x = normal(2, 3, 4, 5)
    point = x.mean((2, 3), keepdims=True)
    got = reference.run_values(program, [x])
    np.testing.assert_allclose(got[1], point.transpose(0, 2, 3, 1), rtol=1e-5)
    np.testing.assert_allclose(reference.run(program, [x])[0], x * point + x, rtol=1e-4, atol=1e-6)
    assert [v.shape for v in got] == [(2, 4, 5, 3), (2, 1, 1, 3), (2, 4, 5, 3), (2, 4, 5, 3)]


def test_sign_of_zero_minus_zero_and_nan():
    values = [Value("real", 1), Value("bits", 1), Value("bits", 1)]
    steps = [Step("sign", value=1), Step("sign", value=2, scale="s", bias="b")]
    tensors = {"s": np.array([-2.0], np.float32), "b": np.array([1.0], np.float32)}
    program = Program([Input("x", 0, 1, None, None)], [], values, [Op("elementwise", "e", [0], steps=steps)], tensors)
    x = np.array([0.0, -0.0, np.nan, 1e-30, -1e-30, 0.5, 0.6], np.float32).reshape(1, 1, 1, 7)
    plain, shifted = reference.run_values(program, [x])[1:]
    assert plain.dtype == np.int8
    assert plain.ravel().tolist() == [1, 1, -1, 1, -1, 1, 1]
    assert shifted.ravel().tolist() == [1, 1, -1, 1, 1, 1, -1]


def test_steps_round_each_operation():
    """A scale with its bias is one operation; a scale alone is rounded before the bias of the next step."""
    x = np.float32(1 + 2**-12)
    tensors = {"s": np.array([x]), "b": np.array([-(1 + 2**-11)], np.float32)}
    for steps, want in (
        ([Step("affine", scale="s", bias="b")], 2.0**-24),
        ([Step("affine", scale="s"), Step("affine", bias="b")], 0.0),
    ):
        program = one_op(Op("elementwise", "e", [], steps=steps), 1, 1, tensors)
        assert reference.run(program, [np.full((1, 1, 1, 1), x)])[0].item() == want


def test_outside_layouts():
    for dims, shape in ((4, (2, 3, 4, 5)), (3, (2, 3, 5)), (2, (2, 3))):
        program = one_op(Op("elementwise", "e", []), 3, 3)
        program.inputs[0].dims = program.outputs[0].dims = dims
        x = normal(*shape)
        assert np.array_equal(reference.run(program, [x])[0], x)


def test_uint8_pictures_are_normalised_in_float32():
    rules = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    program = one_op(Op("elementwise", "e", []), 3, 3, preprocessing=rules)
    pictures = RNG.integers(0, 256, (2, 4, 5, 3), np.uint8)
    expected = (torch.from_numpy(pictures).float() / 255 - torch.tensor(rules["mean"])) / torch.tensor(rules["std"])
    assert np.array_equal(reference.run(program, [pictures])[0], expected.permute(0, 3, 1, 2).numpy())


def test_wrong_inputs():
    program = one_op(Op("elementwise", "e", []), 3, 3, size=(4, 5))
    for bad in ([], [normal(1, 3, 4, 5)] * 2, [normal(1, 2, 4, 5)], [normal(1, 3, 4, 4)], [normal(3, 4, 5)]):
        with pytest.raises(ProgramError):
            reference.run(program, bad)
    with pytest.raises(ProgramError, match="float32"):
        reference.run(program, [np.zeros((1, 3, 4, 5))])
    with pytest.raises(ProgramError, match="preprocessing"):
        reference.run(program, [np.zeros((1, 4, 5, 3), np.uint8)])
