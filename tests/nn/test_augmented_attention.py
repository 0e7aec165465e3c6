import math

import pytest
import torch
from torch import nn

from leanconv.nn import ConvertError, convert
from leanconv.nn.augmented_attention import AAConv2d, RelativePosition2d


def attention_by_loops(layer, x):
    """The attention branch without pooling: one head, one pair of positions at a time."""
    n, _, height, width = x.shape
    heads, (dk, _, dv) = layer.num_heads, layer.widths
    key, value = dk // heads, dv // heads
    maps = torch.einsum("oc,nchw->nohw", layer.qkv.weight[:, :, 0, 0], x)
    if layer.qkv.bias is not None:
        maps = maps + layer.qkv.bias[:, None, None]
    joined = torch.empty(n, dv, height, width, dtype=x.dtype)
    places = [(i, j) for i in range(height) for j in range(width)]
    rows, columns = layer.position.size
    for b in range(n):
        for h in range(heads):
            q = maps[b, h * key : (h + 1) * key]
            k = maps[b, dk + h * key : dk + (h + 1) * key]
            v = maps[b, 2 * dk + h * value : 2 * dk + (h + 1) * value]
            for i, j in places:
                logits = []
                for r, c in places:
                    down = min(max(r - i, 1 - rows), rows - 1)  # beyond the table: its largest distance
                    right = min(max(c - j, 1 - columns), columns - 1)
                    where = layer.position.height[rows - 1 + down] + layer.position.width[columns - 1 + right]
                    logits.append(float(q[:, i, j] @ (k[:, r, c] + where)) / math.sqrt(key))
                top = max(logits)
                weights = [math.exp(t - top) for t in logits]
                total = sum(w * v[:, r, c] for w, (r, c) in zip(weights, places, strict=True))
                joined[b, h * value : (h + 1) * value, i, j] = total / sum(weights)
    y = torch.einsum("oc,nchw->nohw", layer.project.weight[:, :, 0, 0], joined)
    return y if layer.project.bias is None else y + layer.project.bias[:, None, None]


def mean_by_loops(x, factor):
    """Average pool with an odd window around every factor-th position, over what is inside the picture."""
    _, _, height, width = x.shape
    reach = factor // 2
    rows = [
        torch.stack(
            [
                x[:, :, max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1].mean((2, 3))
                for j in range(0, width, factor)
            ],
            -1,
        )
        for i in range(0, height, factor)
    ]
    return torch.stack(rows, -2)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape, kernel, stride, dilation, heads, size",
    [
        ((2, 5, 4, 3), 3, 1, 1, 2, (4, 3)),
        ((1, 6, 5, 6), 3, 2, 1, 1, 3),
        ((2, 4, 3, 4), 1, 1, 1, 4, (8, 6)),  # smaller than the table
        ((1, 4, 5, 6), (3, 5), 1, 2, 2, (2, 3)),  # larger than the table
        ((1, 3, 1, 1), 3, 1, 1, 2, 1),
        ((2, 3, 7, 5), 3, 3, 1, 2, 3),
    ],
)
def test_against_loops(shape, kernel, stride, dilation, heads, size, bias):
    torch.manual_seed(0)
    layer = AAConv2d(
        shape[1],
        24,
        kernel,
        stride,
        None,
        dilation,
        bias,
        num_heads=heads,
        feat_size=size,
        key_ratio=0.5,
        value_ratio=0.4,
        min_key_dim=3,
    ).double()
    x = torch.randn(shape, dtype=torch.float64)
    pooled = mean_by_loops(x, stride) if stride > 1 else x
    assert sum(p.numel() for p in layer.project.parameters()) > 0 and (layer.qkv.bias is not None) == bias
    expected = torch.cat([layer.conv(x), attention_by_loops(layer, pooled)], 1)
    assert layer(x).shape[1] == 24
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("stride, pool, side", [(1, 2, 7), (2, 2, 9), (1, 3, 8)])
def test_pooled_attention(stride, pool, side):
    torch.manual_seed(0)
    layer = AAConv2d(4, 8, 3, stride, num_heads=2, feat_size=4, min_key_dim=2, pool=pool).double()
    x = torch.randn(2, 4, side, side, dtype=torch.float64)
    small = attention_by_loops(layer, mean_by_loops(x, stride * pool))
    out = math.ceil(side / stride)
    assert small.shape[2] == math.ceil(side / (stride * pool))
    large = nn.functional.interpolate(small, size=(out, out), mode="bilinear")
    torch.testing.assert_close(layer(x), torch.cat([layer.conv(x), large], 1))


def test_relative_positions_are_those_of_the_distances():
    torch.manual_seed(0)
    position = RelativePosition2d(3, (3, 2)).double()
    q = torch.randn(2, 4, 6, 3, dtype=torch.float64)
    bias = position(q, 3, 2).unflatten(2, (3, 2)).unflatten(4, (3, 2))
    for i, j, u, v in [(0, 0, 0, 0), (0, 1, 2, 0), (2, 0, 0, 1), (1, 1, 2, 1)]:
        vector = position.height[2 + u - i] + position.width[1 + v - j]
        torch.testing.assert_close(bias[:, :, i, j, u, v], q[:, :, i * 2 + j] @ vector)


def test_gradients():
    torch.manual_seed(0)
    layer = AAConv2d(3, 6, 3, stride=2, num_heads=2, feat_size=2, min_key_dim=2, pool=2).double()
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize(
    "out, dk, dv", [(64, 160, 8), (128, 160, 16), (256, 160, 24), (512, 160, 48), (1024, 208, 104)]
)
def test_default_widths(out, dk, dv):
    """At least 20 keys a head; about 0.2 and 0.1 of the output channels."""
    layer = AAConv2d(4, out, 3, padding=1, bias=False, feat_size=7)
    assert layer.widths == (dk, dk, dv)
    expected = 9 * 4 * (out - dv) + 4 * (2 * dk + dv) + dv**2 + 2 * 13 * dk // 8
    assert sum(p.numel() for p in layer.parameters()) == expected


def test_exports_with_a_dynamic_batch():
    torch.manual_seed(0)
    layer = AAConv2d(4, 16, 3, stride=2, num_heads=2, feat_size=4, pool=2).eval()
    exported = torch.export.export(
        layer, (torch.randn(2, 4, 9, 7),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    for batch in (1, 5):
        x = torch.randn(batch, 4, 9, 7)
        torch.testing.assert_close(exported.module()(x), layer(x))


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_conv_layer():
    torch.manual_seed(0)
    layer = AAConv2d(4, 12, 3, num_heads=2, feat_size=4, conv_layer=Doubled)
    assert type(layer.conv) is Doubled
    x = torch.randn(1, 4, 4, 4)
    plain = nn.functional.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)
    torch.testing.assert_close(layer(x)[:, : plain.shape[1]], 2 * plain)


@pytest.mark.parametrize("bias", [True, False])
def test_convert_keeps_the_first_filters(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 16, (3, 5), 2, (2, 4), 2, bias=bias), nn.Conv2d(16, 2, 1))
    old = model[1]
    x = torch.randn(2, 3, 9, 8)
    before = old(model[0](x))
    convert(model, AAConv2d, only=["1"], num_heads=2, feat_size=5)
    new = model[1]
    assert type(new) is AAConv2d and new.widths[2] == 2
    torch.testing.assert_close(new(model[0](x))[:, :14], before[:, :14])


@pytest.mark.parametrize(
    "old, message",
    [
        (nn.Conv2d(4, 16, 3, padding=1, groups=2), "no groups, the layer has 2"),
        (nn.Conv2d(4, 16, 3), r"padding must keep the map's size: \(1, 1\) for this kernel, got \(0, 0\)"),
        (nn.Conv2d(4, 16, 3, padding="same"), "padding must be numbers, the layer has 'same'"),
        (nn.Conv2d(4, 16, 2), "odd kernels and equal strides"),
    ],
)
def test_convert_refuses(old, message):
    with pytest.raises(ConvertError, match=message):
        convert(nn.Sequential(old), AAConv2d, skip=[], feat_size=4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stride": (1, 2)}, "equal strides"),
        ({"num_heads": 0}, "must be positive, got 0, 1 and 4"),
        ({"pool": 0}, "must be positive, got 8, 0 and 4"),
        ({"num_heads": 16}, "16 heads of 1 values leave no filter of 16 to the convolution"),
        ({"value_ratio": 1.0}, "8 heads of 2 values leave no filter"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AAConv2d(4, 16, 3, **{"feat_size": 4} | arguments)
