"""Marker operators: what a binary layer becomes in an exported graph.

During ``torch.export`` (and only there) each binary layer emits one of these operators, with the *latent* real weight
as an argument, so that the compiler has nothing to guess from a graph of small operators. They compute the same as
the layers, so an exported program still runs in PyTorch:

- ``leanconv::sign(x)``: +-1 in x's dtype
- ``leanconv::binary_conv(input, weight, bias, weight_binarizer, stride, padding, pad_value, dilation, groups)``;
  padding is ``[before..., after...]``: [top, left, bottom, right] or [left, right]
- ``leanconv::binary_conv_transpose(input, weight, bias, weight_binarizer, stride, padding, output_padding,
  dilation, groups)``
- ``leanconv::binary_linear(input, weight, bias, weight_binarizer)``
- ``leanconv::gated_conv(input, gain, weight, bias, share, stride, padding, dilation, groups)``: AW-convolution, with
  the gain [N, maps, h, w] or [N, maps, 1, 1] that multiplies the weight
- ``leanconv::windowed_conv(input, weight, bias, stride, padding, dilation, sets, shift)``: REAF

The last two stand for real-valued layers and are emitted for the engine's compiler alone
(:func:`leanconv.nn.exporting.is_lowering`): other exports get standard operators.

`weight_binarizer` is ``"sign"`` or ``"magnitude"``; see :func:`leanconv.nn.binarize.weight_scale`. The input of the
binary layers comes from ``leanconv::sign``. The markers have no gradient; training never meets them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from leanconv.nn import functional
from leanconv.nn.binarize import sign, weight_scale

SCHEMAS = {
    "sign": "(Tensor x) -> Tensor",
    "binary_conv": (
        "(Tensor input, Tensor weight, Tensor? bias, str weight_binarizer, int[] stride, int[] padding, int pad_value, "
        "int[] dilation, int groups) -> Tensor"
    ),
    "binary_conv_transpose": (
        "(Tensor input, Tensor weight, Tensor? bias, str weight_binarizer, int[] stride, int[] padding, "
        "int[] output_padding, int[] dilation, int groups) -> Tensor"
    ),
    "binary_linear": "(Tensor input, Tensor weight, Tensor? bias, str weight_binarizer) -> Tensor",
    "gated_conv": (
        "(Tensor input, Tensor gain, Tensor weight, Tensor? bias, str share, int[] stride, int[] padding, "
        "int[] dilation, int groups) -> Tensor"
    ),
    "windowed_conv": (
        "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int sets, int shift) "
        "-> Tensor"
    ),
}


def _sign(x: Tensor) -> Tensor:
    return sign(x)


def _binary_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_binarizer: str,
    stride: list[int],
    padding: list[int],
    pad_value: int,
    dilation: list[int],
    groups: int,
) -> Tensor:
    scale = weight_scale(weight, weight_binarizer)
    return functional.binary_conv(input, sign(weight), scale, bias, stride, padding, pad_value, dilation, groups)


def _binary_conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_binarizer: str,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    scale = weight_scale(weight, weight_binarizer, transposed=True, groups=groups)
    return functional.binary_conv_transpose(
        input, sign(weight), scale, bias, stride, padding, output_padding, dilation, groups
    )


def _binary_linear(input: Tensor, weight: Tensor, bias: Tensor | None, weight_binarizer: str) -> Tensor:
    return functional.binary_linear(input, sign(weight), weight_scale(weight, weight_binarizer), bias)


def _gated_conv(
    input: Tensor,
    gain: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    share: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    maps = {"in": (groups, -1, 1), "out": (groups, 1, -1), "taps": (1, 1, 1), "none": (groups, -1, weight.shape[1])}
    kernels = weight.unflatten(0, (groups, -1)) * gain.unflatten(1, maps[share])
    top, left, bottom, right = padding
    picture = F.pad(input, (left, right, top, bottom))
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    size = [(n - r - 1) // s + 1 for n, r, s in zip(picture.shape[2:], reach, stride, strict=True)]
    patches = F.unfold(picture, weight.shape[2:], tuple(dilation), 0, tuple(stride)).unflatten(1, (groups, -1))
    result = (kernels.flatten(3) @ patches).flatten(1, 2).unflatten(2, size)
    return result if bias is None else result + bias.view(-1, 1, 1)


def _gated_conv_shape(
    input: Tensor,
    gain: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    share: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """A result of the right shape, without what unfolding assumes about sizes."""
    top, left, bottom, right = padding
    return F.conv2d(F.pad(input, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)


def _windowed_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    sets: int,
    shift: int,
) -> Tensor:
    first = torch.arange(sets, device=input.device)[:, None] * shift
    read = (first + torch.arange(weight.shape[1], device=input.device)) % input.shape[1]
    top, left, bottom, right = padding
    gathered = F.pad(input.index_select(1, read.flatten()), (left, right, top, bottom))
    return F.conv2d(gathered, weight, bias, stride, 0, dilation, sets)


_IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "sign": _sign,
    "binary_conv": _binary_conv,
    "binary_conv_transpose": _binary_conv_transpose,
    "binary_linear": _binary_linear,
    "gated_conv": _gated_conv,
    "windowed_conv": _windowed_conv,
}

_SHAPES = {**_IMPLEMENTATIONS, "gated_conv": _gated_conv_shape}

_library = torch.library.Library("leanconv", "FRAGMENT")  # lives as long as the process
for _name, _schema in SCHEMAS.items():
    _library.define(f"{_name}{_schema}")
    _library.impl(_name, _IMPLEMENTATIONS[_name], "CompositeExplicitAutograd")
    # These are made of PyTorch operators that infer shapes themselves.
    torch.library.register_fake(f"leanconv::{_name}", _SHAPES[_name], lib=_library)
