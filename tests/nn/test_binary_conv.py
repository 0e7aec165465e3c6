"""The binary layers against loops written from the definition: integer sum, then scale, then bias."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanconv.nn import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryConvTranspose2d,
    BinaryLinear,
    MagnitudeWeight,
    STESign,
)


def signs(x: torch.Tensor) -> np.ndarray:
    return np.where(x.detach().numpy() >= 0, 1, -1).astype(np.int64)


def finish(
    total: np.ndarray, weight: np.ndarray, bias: torch.Tensor | None, magnitude: bool, out_axis: int
) -> np.ndarray:
    """Scale (mean |w| of each filter, given as [O, ...]) and bias in float32, in this order."""
    shape = [1] * total.ndim
    shape[out_axis] = -1
    y = total.astype(np.float32)
    if magnitude:
        y = y * np.abs(weight).reshape(len(weight), -1).mean(1, dtype=np.float32).reshape(shape)
    if bias is not None:
        y = y + bias.detach().numpy().reshape(shape)
    return y


def conv_loop(x, layer, pads):
    """Slow 2-d convolution; pads = top, left, bottom, right."""
    xs, w = signs(x), layer.weight.detach().numpy()
    ws = np.where(w >= 0, 1, -1)
    n, channels, height, width = xs.shape
    out, per_group, kh, kw = ws.shape
    (sh, sw), (dh, dw) = layer.stride, layer.dilation
    top, left, bottom, right = pads
    oh = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    ow = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    total = np.zeros((n, out, oh, ow), np.int64)
    for b, o, y, z, i, ky, kx in itertools.product(*map(range, (n, out, oh, ow, per_group, kh, kw))):
        iy, ix = y * sh - top + ky * dh, z * sw - left + kx * dw
        inside = 0 <= iy < height and 0 <= ix < width
        c = o // (out // layer.groups) * per_group + i
        total[b, o, y, z] += (xs[b, c, iy, ix] if inside else layer.pad_value) * ws[o, i, ky, kx]
    assert channels == per_group * layer.groups
    return finish(total, w, layer.bias, layer.binarize_weight.kind == "magnitude", 1)


def check(y: torch.Tensor, expected: np.ndarray, exact: bool) -> None:
    assert tuple(y.shape) == expected.shape
    if exact:
        assert np.array_equal(y.detach().numpy(), expected)
    else:
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad_value", [0, -1, 1])
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "padding", "dilation", "groups"),
    [
        (3, 5, 3, 1, 1, 1, 1),
        (5, 4, (3, 2), (2, 1), (1, 0), 1, 1),
        (4, 6, 3, 2, 2, 2, 2),
        (6, 6, 3, 1, 1, 1, 6),
        (7, 3, 1, 1, 0, 1, 1),
        (2, 3, (1, 3), (1, 3), (0, 2), (1, 2), 1),
    ],
)
def test_conv2d_matches_the_loop(channels, out, kernel, stride, padding, dilation, groups, pad_value):
    torch.manual_seed(channels)
    layer = BinaryConv2d(channels, out, kernel, stride, padding, dilation, groups, True, pad_value=pad_value)
    x = torch.randn(2, channels, 7, 6)
    top, left = layer.padding
    check(layer(x), conv_loop(x, layer, (top, left, top, left)), exact=True)
    layer.eval()
    check(layer(x), conv_loop(x, layer, (top, left, top, left)), exact=True)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_conv2d_matches_the_loop_for_any_shape(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups = draw(1, 2)
    layer = BinaryConv2d(
        groups * draw(1, 3),
        groups * draw(1, 3),
        (draw(1, 3), draw(1, 3)),
        (draw(1, 3), draw(1, 3)),
        (draw(0, 2), draw(0, 2)),
        (draw(1, 2), draw(1, 2)),
        groups,
        bias=data.draw(st.booleans()),
        pad_value=draw(-1, 1),
        binarize_weight=data.draw(st.sampled_from(["sign", "magnitude"])),
    )
    x = torch.randn(draw(1, 2), layer.in_channels, draw(5, 7), draw(5, 7))
    top, left = layer.padding
    check(layer(x), conv_loop(x, layer, (top, left, top, left)), exact=False)


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (3, 2), ((4, 1), 1), ((2, 3), (3, 1))])
def test_same_padding_puts_the_odd_row_after(kernel, dilation):
    layer = BinaryConv2d(2, 3, kernel, padding="same", dilation=dilation, pad_value=-1)
    x = torch.randn(1, 2, 6, 5)
    total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    top, left = total[0] // 2, total[1] // 2
    y = layer(x)
    assert y.shape[2:] == x.shape[2:]
    check(y, conv_loop(x, layer, (top, left, total[0] - top, total[1] - left)), exact=True)


def test_same_padding_agrees_with_pytorch():
    layer = BinaryConv2d(2, 3, (4, 3), padding="same", dilation=(1, 2))
    x = torch.randn(1, 2, 6, 5)
    ones = layer.binarize_weight(layer.weight).detach()
    expected = nn.functional.conv2d(STESign()(x), ones, padding="same", dilation=(1, 2))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
@pytest.mark.parametrize("pad_value", [0, 1])
def test_conv1d_is_a_conv2d_of_height_one(padding, pad_value):
    one = BinaryConv1d(4, 6, 3, padding=padding, dilation=2, groups=2, bias=True, pad_value=pad_value)
    two_padding = (0, padding) if isinstance(padding, int) else padding
    two = BinaryConv2d(4, 6, (1, 3), padding=two_padding, dilation=(1, 2), groups=2, bias=True, pad_value=pad_value)
    with torch.no_grad():
        two.weight.copy_(one.weight.unsqueeze(2))
        two.bias.copy_(one.bias)
    x = torch.randn(2, 4, 9)
    assert torch.equal(one(x), two(x.unsqueeze(2)).squeeze(2))


@pytest.mark.parametrize("kind", ["sign", "magnitude"])
@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "dilation", "groups"),
    [(1, 0, 0, 1, 1), (2, 1, 1, 1, 1), ((2, 3), (0, 2), (1, 0), (2, 1), 2), (3, 1, 0, 2, 2)],
)
def test_conv_transpose_matches_the_loop(stride, padding, output_padding, dilation, groups, kind):
    layer = BinaryConvTranspose2d(
        4, 6, (3, 2), stride, padding, output_padding, groups, True, dilation, binarize_weight=kind
    )
    x = torch.randn(2, 4, 4, 3)
    xs, w = signs(x), layer.weight.detach().numpy()
    ws = np.where(w >= 0, 1, -1)
    y = layer(x)
    total = np.zeros(tuple(y.shape), np.int64)
    outputs = 6 // groups
    for b, i, j, k, o, ky, kx in itertools.product(*map(range, (2, 4, 4, 3, outputs, 3, 2))):
        oy = j * layer.stride[0] - layer.padding[0] + ky * layer.dilation[0]
        ox = k * layer.stride[1] - layer.padding[1] + kx * layer.dilation[1]
        if 0 <= oy < total.shape[2] and 0 <= ox < total.shape[3]:
            total[b, i // (4 // groups) * outputs + o, oy, ox] += xs[b, i, j, k] * ws[i, o, ky, kx]
    filters = w.reshape(groups, 4 // groups, outputs, 3, 2).transpose(0, 2, 1, 3, 4).reshape(6, -1)
    check(y, finish(total, filters, layer.bias, kind == "magnitude", 1), exact=False)


@pytest.mark.parametrize("shape", [(3, 9), (2, 4, 9)])
@pytest.mark.parametrize("kind", ["sign", "magnitude"])
def test_linear_matches_integer_product(shape, kind):
    layer = BinaryLinear(9, 5, True, binarize_weight=kind)
    x = torch.randn(shape)
    w = layer.weight.detach().numpy()
    expected = finish(signs(x) @ signs(layer.weight).T, w, layer.bias, kind == "magnitude", len(shape) - 1)
    check(layer(x), expected, exact=False)


def test_zero_inputs_and_weights_count_as_plus_one():
    layer = BinaryConv2d(2, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.0, -0.0]).view(1, 2, 1, 1))
    assert layer(torch.tensor([-0.0, 0.0]).view(1, 2, 1, 1)).item() == 2


def test_sum_comes_before_scale():
    """0.1 * 3 in float32 is not 0.1 + 0.1 + 0.1."""
    layer = BinaryConv2d(3, 1, 1, binarize_weight="magnitude")
    with torch.no_grad():
        layer.weight.fill_(0.1)
    scale = layer.binarize_weight.scale(layer.weight)
    assert torch.equal(layer(torch.ones(1, 3, 1, 1)).flatten(), 3 * scale)


@pytest.mark.parametrize("detach", [True, False])
def test_gradients_of_a_whole_layer(detach):
    """One tap: dy/dx = s sign(w) [|x| <= 1]; dy/dw = s sign(x) [|w| <= 1], and sum * sign(w) / n where s is trained."""
    layer = BinaryConv2d(3, 1, 1, binarize_weight=MagnitudeWeight(detach=detach))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.5, -0.4]).view(1, 3, 1, 1))
    x = torch.tensor([0.2, -0.3, 1.7]).view(1, 3, 1, 1).requires_grad_()
    y = layer(x)
    y.backward()
    s = 0.8
    assert y.item() == pytest.approx(s * (1 + 1 - 1))
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([s, -s, 0.0]))
    expected = torch.tensor([s, 0.0, s])
    if not detach:
        expected = expected + torch.tensor([1.0, -1.0, -1.0]) / 3
    torch.testing.assert_close(layer.weight.grad.flatten(), expected)


def test_no_input_binarizer_takes_signs_as_they_are():
    layer = BinaryConv2d(4, 2, 3, binarize_input=None)
    x = STESign()(torch.randn(1, 4, 5, 5))
    other = BinaryConv2d(4, 2, 3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="pad_value must be 0, -1 or 1"):
        BinaryConv2d(1, 1, 3, pad_value=2)
    with pytest.raises(ValueError, match="did you mean 'ste_sign'"):
        BinaryLinear(3, 3, binarize_input="st_sign")
    with pytest.raises(ValueError, match="output_padding"):
        BinaryConvTranspose2d(1, 1, 2)(torch.ones(1, 1, 2, 2), output_size=[4, 4])
    assert "pad_value=-1" in repr(BinaryConv2d(1, 1, 3, padding=1, pad_value=-1))


def test_state_dict_is_that_of_pytorchs_layer():
    assert BinaryConv2d(3, 4, 3, bias=True).state_dict().keys() == nn.Conv2d(3, 4, 3).state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = BinaryConv2d(8, 4, 3, padding=1, bias=True, binarize_weight="magnitude")
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), layer(x), rtol=2e-2, atol=2e-2)
    y.float().square().sum().backward()
    assert torch.isfinite(layer.weight.grad).all() and layer.weight.grad.abs().sum() > 0
    assert x.grad.dtype == torch.float32


def test_large_sums_are_exact_integers():
    layer = BinaryConv2d(256, 8, 3, padding=1, bias=False)
    y = layer(torch.randn(1, 256, 14, 14))
    assert torch.equal(y, y.round()) and float(y.detach().abs().max()) <= 9 * 256
    assert (y[:, :, 1:-1, 1:-1] % 2 == 0).all()  # an even number of odd products


def test_distributed_data_parallel():
    """One process: every parameter takes part, and the gradients are those of the bare network."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        net = nn.Sequential(
            BinaryConv2d(3, 4, 3, binarize_input="rsign", binarize_weight="magnitude"), nn.BatchNorm2d(4)
        )
        x = torch.randn(2, 3, 6, 6)
        net(x).square().sum().backward()
        expected = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        parallel = nn.parallel.DistributedDataParallel(net)
        for _ in range(2):  # a parameter without gradient makes the second forward fail
            net.zero_grad()
            parallel(x).square().sum().backward()
        for p, want in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, want)
    finally:
        torch.distributed.destroy_process_group()
