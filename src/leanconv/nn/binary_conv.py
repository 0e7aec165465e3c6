"""Binary convolutions and the binary dense layer: PyTorch's arguments, +-1 activations, +-1 weights.

Each computes ``y[c] = scale[c] * sum(sign(w) * sign(x)) + bias[c]``: first the sum of +-1 products, an integer, then
the scale (weight binariser ``"magnitude"`` only), then the bias. The order is part of the definition; the engine
keeps it too. The same forward holds in training and evaluation; the gradients are those of the two binarisers
(:mod:`leanconv.nn.binarize`). In float32 on the CPU the sum is exact. Under autocast it is rounded to the
16-bit type, and a GPU library may pick an algorithm that rounds on the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.nn import functional, markers  # noqa: F401  (markers registers the operators)
from leanconv.nn.binarize import WeightBinarizer, create_activation_binarizer, create_weight_binarizer
from leanconv.nn.exporting import is_exporting

Size = int | tuple[int, ...]


def _check_pad_value(pad_value: int) -> int:
    if pad_value not in (0, -1, 1):
        raise ValueError(f"pad_value must be 0, -1 or 1, got {pad_value!r}")
    return int(pad_value)


class _BinaryConv(nn.modules.conv._ConvNd):
    """What the 1-d and 2-d binary convolutions share; comes after nn.Conv1d or nn.Conv2d in the bases."""

    def _set_up(
        self, binarize_input: str | nn.Module | None, binarize_weight: str | WeightBinarizer, pad_value: int
    ) -> None:
        self.pad_value = _check_pad_value(pad_value)
        self.binarize_input = create_activation_binarizer(binarize_input, self.in_channels)
        self.binarize_weight = create_weight_binarizer(binarize_weight)
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            before = [t // 2 for t in total]
            self.padding_sizes = [*before, *(t - b for t, b in zip(total, before, strict=True))]
        elif self.padding == "valid":
            self.padding_sizes = [0, 0] * len(self.kernel_size)
        else:
            self.padding_sizes = [*self.padding, *self.padding]

    def forward(self, input: Tensor) -> Tensor:
        if self.binarize_input is not None:
            input = self.binarize_input(input)
        window = (list(self.stride), self.padding_sizes, self.pad_value, list(self.dilation), self.groups)
        if is_exporting():
            kind = self.binarize_weight.marker_kind()
            return torch.ops.leanconv.binary_conv(input, self.weight, self.bias, kind, *window)
        scale = self.binarize_weight.scale(self.weight)
        return functional.binary_conv(input, self.binarize_weight(self.weight), scale, self.bias, *window)

    def extra_repr(self) -> str:
        pad = f", pad_value={self.pad_value}" if self.pad_value and any(self.padding_sizes) else ""
        return super().extra_repr() + pad


class BinaryConv2d(_BinaryConv, nn.Conv2d):
    """2-d convolution of +-1 activations with +-1 weights, with the arguments of ``torch.nn.Conv2d``.

    ``y[n, c] = scale[c] * sum(sign(w[c]) * sign(x[n])) + bias[c]``, the sum (an integer) first.

    Args:
        padding: as in PyTorch, ``"same"`` and ``"valid"`` too.
        pad_value: what a tap outside the picture counts as: 0 (adds nothing), -1 or +1.
        binarize_input: ``"ste_sign"`` (gradient 1 where |x| <= 1), ``"approx_sign"``, ``"swish_sign"``, ``"rsign"``,
            a module that returns +-1, or None when the input is +-1 already.
        binarize_weight: ``"sign"``, ``"magnitude"`` (scale[c] = mean |w[c]|, detached), ``"magnitude_trained"`` (not
            detached), or a :class:`~leanconv.nn.binarize.WeightBinarizer`.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, H', W'], PyTorch's sizes.
    Raises: ValueError for an unknown binariser or pad_value, and what ``nn.Conv2d`` raises.
    Latent weights are real parameters, initialised as PyTorch does; the packed file keeps one bit of each.

    >>> layer = BinaryConv2d(1, 1, 3, padding=1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(0.3)
    >>> layer(torch.ones(1, 1, 3, 3)).squeeze().tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        pad_value: int = 0,
        binarize_input: str | nn.Module | None = "ste_sign",
        binarize_weight: str | WeightBinarizer = "sign",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Conv2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
            device=device,
            dtype=dtype,
        )
        self._set_up(binarize_input, binarize_weight, pad_value)


class BinaryConv1d(_BinaryConv, nn.Conv1d):
    """1-d convolution of +-1 activations with +-1 weights; arguments and definition as :class:`BinaryConv2d`.

    Shapes: [N, in_channels, L] -> [N, out_channels, L'].

    >>> BinaryConv1d(4, 8, 3, padding="same")(torch.randn(2, 4, 10)).shape
    torch.Size([2, 8, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        pad_value: int = 0,
        binarize_input: str | nn.Module | None = "ste_sign",
        binarize_weight: str | WeightBinarizer = "sign",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Conv1d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
            device=device,
            dtype=dtype,
        )
        self._set_up(binarize_input, binarize_weight, pad_value)


class BinaryConvTranspose2d(nn.ConvTranspose2d):
    """2-d transposed convolution of +-1 activations with +-1 weights, with the arguments of
    ``torch.nn.ConvTranspose2d``.

    Input pixel y times tap k adds to output pixel ``y * stride - padding + k * dilation``; then ``scale[c]``, then
    ``bias[c]``. With ``binarize_weight="magnitude"`` the scale is the mean |w| over the filter of each output
    channel. Binarisers as in :class:`BinaryConv2d`.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, (H - 1) * stride - 2 * padding + dilation * (kernel - 1) +
    output_padding + 1, ...].
    Raises: ValueError for an unknown binariser, and what ``nn.ConvTranspose2d`` raises.

    >>> BinaryConvTranspose2d(8, 4, 2, stride=2)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 4, 10, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: Size = 1,
        *,
        binarize_input: str | nn.Module | None = "ste_sign",
        binarize_weight: str | WeightBinarizer = "sign",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            output_padding,  # type: ignore[arg-type]
            groups,
            bias,
            dilation,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self.binarize_input = create_activation_binarizer(binarize_input, in_channels)
        self.binarize_weight = create_weight_binarizer(binarize_weight)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            raise ValueError("BinaryConvTranspose2d takes no output_size: give output_padding to the constructor")
        if self.binarize_input is not None:
            input = self.binarize_input(input)
        window = (
            list(self.stride),
            [int(p) for p in self.padding],
            list(self.output_padding),
            list(self.dilation),
            self.groups,
        )
        if is_exporting():
            kind = self.binarize_weight.marker_kind()
            return torch.ops.leanconv.binary_conv_transpose(input, self.weight, self.bias, kind, *window)
        scale = self.binarize_weight.scale(self.weight, transposed=True, groups=self.groups)
        return functional.binary_conv_transpose(input, self.binarize_weight(self.weight), scale, self.bias, *window)


class BinaryLinear(nn.Linear):
    """Dense layer on +-1 activations with +-1 weights, with the arguments of ``torch.nn.Linear``.

    ``y[c] = scale[c] * sum(sign(w[c]) * sign(x)) + bias[c]``, the sum (an integer) first. Binarisers as in
    :class:`BinaryConv2d`.

    Shapes: [..., in_features] -> [..., out_features].
    Raises: ValueError for an unknown binariser.

    >>> BinaryLinear(16, 4)(torch.randn(2, 16)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        binarize_input: str | nn.Module | None = "ste_sign",
        binarize_weight: str | WeightBinarizer = "sign",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.binarize_input = create_activation_binarizer(binarize_input, in_features)
        self.binarize_weight = create_weight_binarizer(binarize_weight)

    def forward(self, input: Tensor) -> Tensor:
        if self.binarize_input is not None:
            input = self.binarize_input(input)
        if is_exporting():
            kind = self.binarize_weight.marker_kind()
            return torch.ops.leanconv.binary_linear(input, self.weight, self.bias, kind)
        scale = self.binarize_weight.scale(self.weight)
        return functional.binary_linear(input, self.binarize_weight(self.weight), scale, self.bias)
