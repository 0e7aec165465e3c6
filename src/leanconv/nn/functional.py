"""What the binary layers compute, once: the integer sum of +-1 products, then the scale, then the bias."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def scale_and_bias(x: Tensor, scale: Tensor | None, bias: Tensor | None, channel_dim: int) -> Tensor:
    """``x * scale[c] + bias[c]``, in this order, either left out when None; in x's dtype (under autocast too)."""
    shape = (-1,) + (1,) * (x.dim() - 1 - channel_dim % x.dim())
    if scale is not None:
        x = x * scale.to(x.dtype).view(shape)
    if bias is not None:
        x = x + bias.to(x.dtype).view(shape)
    return x


def binary_conv(
    x: Tensor,
    signs: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    pad_value: int,
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution of +-1 activations with +-1 weights over 1 or 2 dimensions.

    Args:
        x: [N, I, H, W] or [N, I, L], +-1. signs: [O, I / groups, *kernel], +-1. scale, bias: [O] or None.
        padding: [top, left, bottom, right] or [left, right]. pad_value: what a tap outside counts as, 0, -1 or 1.
    """
    n = x.dim() - 2
    before, after = list(padding[:n]), list(padding[n:])
    if any(padding) and (pad_value != 0 or before != after):
        x = F.pad(x, [p for pair in zip(before[::-1], after[::-1], strict=True) for p in pair], value=float(pad_value))
        before = [0] * n
    conv = F.conv1d if n == 1 else F.conv2d
    total = conv(x, signs, None, list(stride), before, list(dilation), groups)
    return scale_and_bias(total, scale, bias, 1)


def binary_conv_transpose(
    x: Tensor,
    signs: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The transposed convolution: input pixel y times tap k goes to output pixel
    ``y * stride - padding + k * dilation``.

    Args: x: [N, I, H, W] or [N, I, L], +-1. signs: [I, O / groups, *kernel], +-1. scale, bias: [O] or None.
    """
    conv = F.conv_transpose1d if x.dim() == 3 else F.conv_transpose2d
    total = conv(x, signs, None, list(stride), list(padding), list(output_padding), groups, list(dilation))
    return scale_and_bias(total, scale, bias, 1)


def binary_linear(x: Tensor, signs: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """A dense layer on +-1: x [..., I], signs [O, I] -> [..., O]."""
    return scale_and_bias(F.linear(x, signs), scale, bias, -1)
