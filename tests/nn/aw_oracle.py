"""AW-convolution by its definition, and layers to try it on."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from leanconv.nn.aw_conv import AWConv2d

SHARES = ("in", "out", "taps", "none")
# in_channels, out_channels, kernel, stride, padding, dilation, groups, height, width
LAYERS = {
    "plain": (5, 6, 3, 1, 1, 1, 1, 7, 8),
    "stride": (4, 6, 3, 2, 1, 1, 2, 9, 7),
    "dilation": (4, 4, (3, 2), (1, 2), (2, 0), (2, 1), 1, 8, 9),
    "even": (3, 4, (2, 4), 1, "same", 1, 1, 5, 6),
    "valid": (3, 4, (1, 3), (3, 2), "valid", 1, 1, 7, 7),
    "depthwise": (6, 6, 3, 2, 1, 1, 6, 7, 5),
    "multiplier": (3, 6, 3, 1, 0, 1, 3, 6, 5),
    "pointwise": (6, 4, 1, 1, 0, 1, 2, 4, 3),
    "smaller than the kernel": (3, 4, 3, 1, 1, 1, 1, 1, 2),
}


def make(shape, share, impl, **args):
    """A float64 layer with norms that are far from their start, in evaluation, and an input of 3 samples."""
    torch.manual_seed(0)
    i, o, kernel, stride, padding, dilation, groups, height, width = LAYERS[shape]
    args = {"rd_ratio": 2, "share": share, "impl": impl} | args
    layer = AWConv2d(i, o, kernel, stride, padding, dilation, groups, dtype=torch.float64, **args).eval()
    for norm in (layer.attn.bn1, layer.attn.bn2):
        for tensor in (norm.weight, norm.bias, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2)
        nn.init.normal_(norm.running_mean)
    return layer, torch.randn(3, i, height, width, dtype=torch.float64, requires_grad=True)


def oracle(layer, x):
    """The definition, a sample at a time, with A written out."""
    a = layer.attention(x)
    gain = 1 + a if layer.residual else a
    conv = partial(F.conv2d, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups)
    return torch.cat([conv(x[n : n + 1], layer.weight * gain[n], layer.bias) for n in range(len(x))])


def gradients(y, layer, x):
    """Of x and the parameters, for a fixed gradient of y."""
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype))
    found = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    return found
