"""Every native path against the numpy oracle, over the shapes where kernels go wrong."""

import numpy as np
import pytest

from leanconv.program import Step
from tests.engine.builder import Builder, check, pictures

CHANNELS = [1, 3, 31, 32, 33, 41, 53, 64, 70, 130]


@pytest.mark.parametrize("pad_value", [0, -1, 1])
@pytest.mark.parametrize("channels", CHANNELS)
def test_binary_conv_channels_and_border(channels, pad_value):
    b = Builder(channels, seed=channels)
    bits = b.bits(b.input)
    b.output(b.binary_conv(bits, CHANNELS[-CHANNELS.index(channels) - 1], pad_value=pad_value))
    check(b.program(), pictures(channels), exact=True)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (2, 4)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 2), (3, 1)])
def test_binary_conv_windows(kernel, stride, dilation):
    b = Builder(41, seed=7)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = (reach[0] // 2, reach[1] // 2, reach[0] - reach[0] // 2, reach[1] - reach[1] // 2)
    bits = b.bits(b.input)
    b.output(b.binary_conv(bits, 21, kernel, stride=stride, dilation=dilation, padding=padding))
    b.output(b.binary_conv(bits, 16, kernel, stride=stride, dilation=dilation, padding=padding, pad_value=1))
    check(b.program(), pictures(41, 11, 9), exact=True)


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (2, 0, 1, 3), (0, 3, 0, 0), (5, 5, 5, 5)])
@pytest.mark.parametrize("pad_value", [0, -1, 1])
def test_binary_conv_uneven_padding(padding, pad_value):
    b = Builder(33, seed=3)
    bits = b.bits(b.input)
    b.output(b.binary_conv(bits, 33, (3, 3), stride=(2, 1), padding=padding, pad_value=pad_value))
    check(b.program(), pictures(33, 6, 7), exact=True)


@pytest.mark.parametrize("words", [1, 7, 8, 9, 31, 32, 33, 247, 248, 255, 256, 257, 300, 2047])
def test_long_reductions(words):
    """Counters of a few bits must be emptied in time: reductions beside every power of two, all bits differing."""
    b = Builder(words * 32, seed=words)
    bits = b.bits(b.input)
    b.output(b.binary_conv(bits, 17, (1, 1), padding=(0, 0, 0, 0)))
    x = np.ones((1, words * 32, 1, 3), np.float32)
    b.tensors["t0"][0] = 0  # a filter of -1 against an input of +1: the largest count
    b.tensors["t0"][1] = 255
    check(b.program(), x, exact=True, threads=(1,))


@pytest.mark.parametrize(
    ("channels", "out", "groups"), [(64, 64, 2), (96, 6, 3), (70, 130, 10), (12, 24, 12), (130, 65, 5)]
)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_binary_conv_groups(channels, out, groups, stride):
    b = Builder(channels, seed=groups)
    bits = b.bits(b.input)
    steps = [b.affine(out), b.store(out)]
    b.output(b.binary_conv(bits, out, stride=stride, groups=groups, steps=steps))
    b.output(b.binary_conv(bits, out, stride=stride, groups=groups, pad_value=1))
    b.output(b.binary_conv(bits, 16, stride=stride))  # the same bits, not regrouped
    check(b.program(), pictures(channels, 9, 8), exact=True)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding", "dilation", "groups"),
    [
        ((3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1),
        ((2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1),
        ((4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 3),
        ((3, 3), (1, 1), (1, 1), (0, 0), (2, 2), 1),
        ((5, 3), (3, 2), (2, 0), (2, 1), (1, 3), 1),
        ((1, 1), (3, 3), (0, 0), (2, 2), (1, 1), 1),
        ((3, 3), (2, 2), (0, 0), (0, 0), (2, 2), 2),
        ((1, 4), (1, 2), (0, 1), (0, 0), (1, 1), 1),
    ],
)
@pytest.mark.parametrize("channels", [6, 66])
def test_binary_conv_transpose(kernel, stride, padding, output_padding, dilation, groups, channels):
    b = Builder(channels, seed=5)
    bits = b.bits(b.input)
    arguments = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    out = 18 * groups
    steps = [b.affine(out), b.store(out)]
    b.output(b.binary_conv_transpose(bits, out, kernel, steps, groups=groups, **arguments))
    check(b.program(), pictures(channels, 5, 6), exact=True)


@pytest.mark.parametrize("channels", [3, 16, 33, 64, 70])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
        ((1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
        ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
        ((7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
        ((3, 3), (2, 1), (2, 0, 1, 3), (2, 3), 1),
        ((5, 4), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ],
)
def test_real_conv(channels, kernel, stride, padding, dilation, groups):
    b = Builder(channels, seed=2)
    for out in (5, 64, 81):
        b.output(b.conv(b.input, out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups))
    check(b.program(), pictures(channels, 11, 13), exact=False)


@pytest.mark.parametrize(
    ("channels", "out", "groups"), [(24, 24, 24), (24, 48, 24), (64, 64, 2), (70, 30, 10), (130, 130, 130)]
)
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 1, 1)])
def test_real_conv_groups(channels, out, groups, padding):
    b = Builder(channels, seed=2)
    b.output(b.conv(b.input, out, groups=groups, padding=padding, stride=(2, 1), steps=[b.affine(out), b.store(out)]))
    check(b.program(), pictures(channels, 9, 8), exact=False)


def test_integer_valued_real_conv_is_exact():
    """Sums of small integers have no rounding, so any order of summation must give the same bits."""
    b = Builder(19)
    weight = b.rng.integers(-4, 5, (37, 3, 3, 19)).astype(np.float32)
    b.output(b.conv(b.input, 37, weight=weight))
    x = np.random.default_rng(0).integers(-8, 9, (3, 19, 12, 12)).astype(np.float32)
    check(b.program(), x, exact=True)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (13, 16)])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((3, 2), (3, 1), (1, 1)), ((5, 5), (4, 3), (2, 2))],
)
def test_pools(size, ceil_mode, kernel, stride, padding):
    b = Builder(70, seed=4)
    b.output(b.max_pool(b.input, kernel, stride, padding, (1, 1), ceil_mode))
    b.output(b.max_pool(b.input, kernel, (1, 1), padding, (2, 1), ceil_mode))
    for count_include_pad in (False, True):
        b.output(b.avg_pool(b.input, kernel, stride, padding, ceil_mode, count_include_pad))
    b.output(b.global_avg_pool(b.input), 2)
    check(b.program(), pictures(70, *size), exact=False)


@pytest.mark.parametrize("channels", [5, 64, 77])
def test_steps(channels):
    """Each kind of step, alone and in chains that the fused epilogue cannot hold."""
    b = Builder(channels, seed=6)
    other = b.elementwise(b.input, [b.affine(channels), b.store(channels)])
    pooled = b.global_avg_pool(b.input)
    single = ["sigmoid", "silu", "hard_sigmoid", "hard_swish"]
    for chain in (
        [Step("add", value=other)],
        [Step("mul", value=other)],
        [Step("add", value=pooled), Step("mul", value=pooled)],
        [Step("clip", min=0.0)],
        [Step("clip", max=0.25)],
        [Step("clip", min=-0.5, max=0.5), b.prelu(channels)],
        [b.prelu(channels), Step("clip", min=0.0, max=6.0)],
        [b.affine(channels, bias=False), b.affine(channels, scale=False), Step("affine")],
        [Step("add", value=other), Step("add", value=other), Step("silu"), b.prelu(channels)],
        *[[Step(kind)] for kind in single],
        [Step(kind) for kind in single],
    ):
        b.output(b.elementwise(b.input, [*chain, b.store(channels)]))
    check(b.program(), 4 * pictures(channels, 7, 6), exact=False)


@pytest.mark.parametrize("channels", [5, 64, 77])
def test_sign_keeps_x_and_takes_scale_and_bias(channels):
    b = Builder(channels, seed=6)
    bits = b.bits(b.input)
    conv = b.binary_conv(
        bits, channels, (1, 1),
        [b.affine(channels), b.sign(channels, scale=True), b.prelu(channels), b.store(channels), b.sign(channels)],
        padding=(0, 0, 0, 0),
    )  # fmt: skip
    first = b.ops[-1].steps[1].value
    assert first is not None
    b.output(b.ops[-1].steps[3].value)
    for value in (first, conv):
        b.output(b.binary_conv(value, 40))
    check(b.program(), pictures(channels), exact=True)


def test_signs_of_zeros_and_nan():
    b = Builder(3)
    b.output(b.binary_conv(b.bits(b.input), 4, (1, 1), padding=(0, 0, 0, 0)))
    x = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45], np.float32).reshape(1, 3, 1, 2)
    check(b.program(), x, exact=True)


def test_concat_in_place_copied_twice_and_nested():
    b = Builder(20, seed=9)
    one = b.conv(b.input, 13)
    two = b.elementwise(b.input, [b.affine(20), b.store(20)])
    inner = b.concat(one, two)
    again = b.concat(one, b.input, one)  # used before, a network input, and one map twice
    outer = b.concat(inner, b.max_pool(b.input, (3, 3), (1, 1), (1, 1)))
    for value in (inner, again, outer):
        b.output(b.conv(value, 7, (3, 3)))
        b.output(b.conv(value, 7, (1, 1), padding=(0, 0, 0, 0)))
        b.output(b.binary_conv(b.bits(value), 9))
        b.output(b.elementwise(value, [Step("clip", min=0.0), b.store(b.channels(value))]))
    b.output(outer)
    b.output(one)
    check(b.program(), pictures(20), exact=False)


def test_residual_chain_in_place():
    b = Builder(40, seed=11)
    real = b.conv(b.input, 40)
    bits = b.bits(real)
    kept = real
    for _ in range(6):
        steps = [b.affine(40), Step("add", value=real), b.store(40), b.sign(40)]
        bits = b.binary_conv(bits, 40, steps=steps)
        real = steps[2].value
    b.output(b.elementwise(real, [Step("add", value=kept), b.store(40)]))  # `kept` must have survived
    b.output(b.linear(b.global_avg_pool(real), 10), 2)
    b.ops[0].tensors["weight"] = b.tensor(np.round(b.tensors[b.ops[0].tensors["weight"]]))
    x = np.random.default_rng(0).integers(-3, 4, (5, 40, 18, 17)).astype(np.float32)
    check(b.program(), x, exact=False)


def test_squeeze_and_excite():
    b = Builder(24, seed=12)
    body = b.binary_conv(b.bits(b.input), 24, steps=[b.affine(24), b.store(24)])
    gate = b.conv(b.global_avg_pool(body), 6, (1, 1), [Step("clip", min=0.0), b.store(6)], padding=(0, 0, 0, 0))
    gate = b.conv(gate, 24, (1, 1), [Step("sigmoid"), b.store(24)], padding=(0, 0, 0, 0))
    b.output(b.elementwise(body, [Step("mul", value=gate), Step("add", value=b.input), b.store(24)]))
    check(b.program(), pictures(24), exact=False)


def test_flatten_linear_and_dense_bits():
    b = Builder(6, seed=13)
    flat = b.flatten(b.max_pool(b.input, (2, 2), (2, 2), (0, 0)), 4, 5)
    b.output(flat, 2)
    b.output(b.linear(flat, 33, [b.affine(33), b.store(33)]), 2)
    b.output(b.binary_conv(b.bits(flat), 70, (1, 1), padding=(0, 0, 0, 0)), 2)
    check(b.program(), pictures(6, 8, 10, batch=3), exact=False)


def test_one_dimension_and_vectors():
    b = Builder(12, dims=3)
    b.output(b.binary_conv(b.bits(b.input), 20, (1, 5), padding=(0, 2, 0, 2)), 3)
    b.output(b.conv(b.input, 8, (1, 3), padding=(0, 1, 0, 1)), 3)
    check(b.program(), pictures(12, 1, 50)[:, :, 0], exact=False)
    b = Builder(12, dims=2)
    b.output(b.linear(b.input, 5), 2)
    check(b.program(), pictures(12, 1, 1, batch=9)[:, :, 0, 0], exact=False)


def test_several_inputs_and_outputs_by_name():
    from leanconv.engine import Model

    b = Builder(4)
    second = b.add_input(4, dims=2)
    b.output(b.elementwise(b.input, [Step("mul", value=second), b.store(4)]))
    b.output(b.global_avg_pool(b.input), 2)
    program = b.program()
    x, y = pictures(4), pictures(4, 1, 1)[:, :, 0, 0]
    check(program, x, y, exact=False)
    model = Model(program.to_bytes())
    result = model({"input1": y, "input0": x})
    assert list(result) == ["output0", "output1"]
    np.testing.assert_array_equal(result["output0"], x * y[:, :, None, None])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (3, 3, 3, 3)])
def test_uint8_pictures(channels, padding):
    b = Builder(channels)
    b.preprocessing = {"mean": [0.485, 0.456, 0.406, 0.5][:channels], "std": [0.229, 0.224, 0.225, 0.25][:channels]}
    b.output(b.conv(b.input, 20, (7, 7), stride=(2, 2), padding=padding))
    if padding[0] == 0:
        b.output(b.elementwise(b.input, [b.store(channels)]))  # normalisation bit for bit
        b.outputs.reverse()
    x = np.random.default_rng(0).integers(0, 256, (2, 40, 33, channels), dtype=np.uint8)
    check(b.program(), x, exact=False)
    if padding[0] == 0:
        b.outputs.pop()
        check(b.program(), x, exact=True)


@pytest.mark.parametrize("batch", [0, 1, 3, 4, 9])
def test_batches_give_what_single_pictures_give(batch):
    from leanconv.engine import Model

    b = Builder(33)
    b.output(b.linear(b.global_avg_pool(b.binary_conv(b.bits(b.conv(b.input, 64)), 64)), 10), 2)
    data = b.program().to_bytes()
    x = pictures(33, 24, 20, batch)
    for threads in (1, 2, 3):
        model = Model(data, threads)
        got = model(x)
        assert got.shape == (batch, 10)
        for i in range(batch):
            np.testing.assert_array_equal(got[i : i + 1], Model(data, 1)(x[i : i + 1]))


@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (5, 4)])
@pytest.mark.parametrize("used_again", [False, True])
def test_large_convolution_and_pool(kernel, used_again):
    """A map that is larger than a cache, pooled right after it is made: exact, whatever order the rows come in."""
    b = Builder(3)
    steps = [
        Step("affine", bias=b.tensor(b.rng.integers(-3, 4, 64).astype(np.float32))),
        Step("clip", min=0.0),
        b.store(64),
    ]
    weight = b.rng.integers(-3, 4, (64, 7, 7, 3)).astype(np.float32)
    stem = b.conv(b.input, 64, (7, 7), steps, stride=(2, 2), padding=(3, 3, 3, 3), weight=weight)
    padding = (kernel[0] // 2, kernel[1] // 2)
    pooled = [b.store(64), b.sign(64)]
    bits = b.max_pool(stem, kernel, (2, 2), padding, ceil_mode=True, steps=pooled)
    b.output(b.binary_conv(bits, 16))
    b.output(pooled[0].value)
    b.output(b.max_pool(b.conv(pooled[0].value, 64, weight=b.rng.integers(-1, 2, (64, 3, 3, 64)).astype(np.float32))))
    if used_again:
        b.output(b.elementwise(stem, [Step("clip", max=9.0), b.store(64)]))
    x = np.random.default_rng(0).integers(-4, 5, (2, 3, 131, 90)).astype(np.float32)
    check(b.program(), x, exact=True, threads=(1, 2, 3))


@pytest.mark.parametrize("count_include_pad", [False, True])
def test_large_convolution_and_average_pool(count_include_pad):
    b = Builder(8)
    stem = b.conv(b.input, 70, (3, 3))
    b.output(
        b.avg_pool(stem, (3, 3), (2, 2), (1, 1), count_include_pad=count_include_pad, steps=[b.affine(70), b.store(70)])
    )
    check(b.program(), pictures(8, 61, 50, batch=1), exact=False, threads=(1, 2, 3))
