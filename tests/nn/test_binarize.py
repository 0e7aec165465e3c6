"""Forward, gradient and clipping of each binariser, against formulas written out here independently."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.nn import (
    ApproxSign,
    MagnitudeWeight,
    RPReLU,
    RSign,
    SignWeight,
    STESign,
    SwishSign,
    create_activation_binarizer,
    create_weight_binarizer,
    sign,
    weight_scale,
)


def expected_sign(x: float) -> float:
    return 1.0 if x >= 0 else -1.0  # nan: -1


def ste(clip: float):
    return lambda x: 1.0 if -clip <= x <= clip else 0.0


def approx(x: float) -> float:
    if -1 <= x < 0:
        return 2 + 2 * x
    if 0 <= x < 1:
        return 2 - 2 * x
    return 0.0


def swish(beta: float):
    def sign_swish(x: torch.Tensor) -> torch.Tensor:
        s = torch.sigmoid(beta * x)
        return 2 * s * (1 + beta * x * (1 - s)) - 1

    def gradient(x: float) -> float:
        t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        sign_swish(t).backward()
        return float(t.grad)

    return gradient


CASES = {
    "ste 1.0": (STESign(), ste(1.0)),
    "ste 1.3": (STESign(clip=1.3), ste(1.3)),
    "approx": (ApproxSign(), approx),
    "swish 5": (SwishSign(), swish(5.0)),
    "swish 2": (SwishSign(beta=2.0), swish(2.0)),
}
EDGES = [-2.0, -1.3, -1.25, -1.0, -0.5, -1e-30, -0.0, 0.0, 1e-30, 0.75, 1.0, 1.25, 1.3, 2.0]


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradient(name):
    layer, gradient = CASES[name]
    edges = torch.tensor(EDGES)
    values = torch.cat([edges, torch.linspace(-3, 3, 101)]).requires_grad_()
    upstream = torch.linspace(-1, 2, values.numel())
    y = layer(values)
    y.backward(upstream)
    assert y.dtype == values.dtype
    for x, out, up, grad in zip(values.tolist(), y.tolist(), upstream.tolist(), values.grad.tolist(), strict=True):
        if x != pytest.approx(1.3):  # the float32 nearest to 1.3 is compared below
            assert grad == pytest.approx(up * gradient(x), abs=1e-5), x
        assert out == expected_sign(x), x


def test_clip_range_is_inclusive():
    edge = torch.tensor(1.3)  # a float32, as the clip is when it is compared
    beyond = torch.nextafter(edge, torch.tensor(9.0))
    x = torch.stack([edge, -edge, beyond, -beyond]).requires_grad_()
    STESign(clip=1.3)(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_sign_of_special_values(dtype):
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, -1.0, 5.0], dtype=dtype)
    assert sign(x).tolist() == [1, 1, 1, -1, -1, -1, 1]
    assert sign(x).dtype == dtype


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=20))
def test_sign_is_total_and_scale_free(values):
    x = torch.tensor(values)
    y = sign(x)
    assert set(y.tolist()) <= {1.0, -1.0}
    assert torch.equal(sign(y), y)
    assert y.tolist() == [expected_sign(v) for v in values]


def test_clip_must_be_positive():
    for make in (STESign, SwishSign, SignWeight):
        with pytest.raises(ValueError, match="positive"):
            make(0.0)


def test_rsign_shifts_each_channel_and_learns_it():
    layer = RSign(3)
    with torch.no_grad():
        layer.shift.copy_(torch.tensor([-0.5, 0.0, 0.5]))
    x = torch.tensor([-0.4, 0.0, 0.4]).repeat(2, 3, 1).requires_grad_()  # N=2, C=3, L=3
    y = layer(x)
    assert y[0].tolist() == [[-1, -1, -1], [-1, 1, 1], [1, 1, 1]]
    y.sum().backward()
    expected = [[approx(v + s) for v in (-0.4, 0.0, 0.4)] for s in (-0.5, 0.0, 0.5)]
    torch.testing.assert_close(x.grad[1], torch.tensor(expected))
    torch.testing.assert_close(layer.shift.grad, 2 * torch.tensor(expected).sum(1))


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_rprelu(shape):
    layer = RPReLU(3)
    with torch.no_grad():
        layer.shift_in.copy_(torch.tensor([0.3, -0.2, 0.0]))
        layer.slope.copy_(torch.tensor([0.1, 0.5, -1.0]))
        layer.shift_out.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(shape)
    y = layer(x)
    for c in range(3):
        inner = x[:, c] + layer.shift_in[c]
        expected = torch.where(inner >= 0, inner, inner * layer.slope[c]) + layer.shift_out[c]
        torch.testing.assert_close(y[:, c], expected)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_weight_binarizers_are_exact_signs_with_clipped_gradient():
    w = torch.tensor([[-1.5, -1.0, -0.0], [0.0, 0.25, 1.5]], requires_grad=True)
    for binarizer in (SignWeight(), MagnitudeWeight()):
        w.grad = None
        y = binarizer(w)
        assert y.tolist() == [[-1, -1, 1], [1, 1, 1]]
        y.sum().backward()
        assert w.grad.tolist() == [[0, 1, 1], [1, 1, 0]]
    w.grad = None
    SignWeight(clip=1.5)(w).sum().backward()
    assert w.grad.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_magnitude_scale_is_the_mean_and_its_gradient():
    w = torch.tensor([[0.5, -1.5], [2.0, 0.0]], requires_grad=True)
    assert SignWeight().scale(w) is None
    assert not MagnitudeWeight().scale(w).requires_grad
    scale = MagnitudeWeight(detach=False).scale(w)
    assert scale.tolist() == [1.0, 1.0]
    (scale * torch.tensor([1.0, 10.0])).sum().backward()
    assert w.grad.tolist() == [[0.5, -0.5], [5.0, 0.0]]


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_scale_of_transposed_weights(groups):
    w = torch.randn(6, 4, 3, 2)  # I, O / groups, kh, kw
    scale = weight_scale(w, "magnitude", transposed=True, groups=groups)
    inputs = 6 // groups
    for o in range(4 * groups):
        g, inner = divmod(o, 4)
        total = sum(float(w[g * inputs + i, inner].abs().sum()) for i in range(inputs))
        assert float(scale[o]) == pytest.approx(total / (inputs * 6), rel=1e-5)


def test_names():
    assert isinstance(create_activation_binarizer("rsign", 4), RSign)
    assert create_activation_binarizer(None, 4) is None
    assert create_weight_binarizer("magnitude_trained").detach is False
    with pytest.raises(ValueError, match="did you mean 'approx_sign'"):
        create_activation_binarizer("aprox_sign", 4)
    with pytest.raises(ValueError, match="did you mean 'magnitude'"):
        create_weight_binarizer("magnitud")
    with pytest.raises(ValueError, match="expected 'sign' or 'magnitude'"):
        weight_scale(torch.ones(1, 1), "max")
