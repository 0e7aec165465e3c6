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

`weight_binarizer` is ``"sign"`` or ``"magnitude"``; see :func:`leanconv.nn.binarize.weight_scale`. The input of the
last three comes from ``leanconv::sign``. The markers have no gradient; training never meets them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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


_IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "sign": _sign,
    "binary_conv": _binary_conv,
    "binary_conv_transpose": _binary_conv_transpose,
    "binary_linear": _binary_linear,
}

_library = torch.library.Library("leanconv", "FRAGMENT")  # lives as long as the process
for _name, _schema in SCHEMAS.items():
    _library.define(f"{_name}{_schema}")
    _library.impl(_name, _IMPLEMENTATIONS[_name], "CompositeExplicitAutograd")
    # The eager implementation is made of PyTorch operators that infer shapes themselves.
    torch.library.register_fake(f"leanconv::{_name}", _IMPLEMENTATIONS[_name], lib=_library)
