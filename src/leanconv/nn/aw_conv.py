"""AW-convolution: the weights of a convolution are re-weighted, for each sample, by attention maps of their shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.nn import markers  # noqa: F401  (registers the operators)
from leanconv.nn.aw_attention import GATES, STARTS, WeightAttention, check_choice
from leanconv.nn.aw_functional import IMPLEMENTATIONS, gated_conv2d
from leanconv.nn.exporting import is_lowering

Size = int | tuple[int, int]

torch.fx.wrap("gated_conv2d")  # its choice of an implementation depends on shapes, which symbolic tracing lacks


class AWConv2d(nn.Conv2d):
    """2-d convolution with attention on its weights, with the arguments of ``torch.nn.Conv2d``.

    ``y[n] = conv2d(x[n], weight * (1 + A[n])) + bias``, where A[n] comes from x[n] by
    :class:`~leanconv.nn.aw_attention.WeightAttention`: average pooling to the kernel's size, 1x1 convolution, norm,
    ReLU, 1x1 convolution, norm, gate. The gradients are the true ones.

    Args:
        rd_ratio: the hidden width is ``max(in_channels // rd_ratio, 1)``, also for grouped convolutions.
        share: ``"in"``, A is constant along the input channels (out_channels maps: a gate for each output channel and
            tap); ``"out"``, constant along the output channels of a group (in_channels maps); ``"taps"``, both (one
            map); ``"none"`` (a map for each pair of channels: many parameters).
        residual: False is ``weight * A``.
        gate: ``"sigmoid"``, ``"tanh"`` or ``"none"``.
        norm_layer: called with a number of channels; ``nn.Identity`` for none.
        pool: ``"one"`` pools to 1 x 1, so that A is constant over the taps.
        start: ``"half"``, the formula as it stands (sigmoids start around a half, so that the weights start about 1.5
            times as large); ``"identity"``, the layer starts as the plain convolution: the last affine layer of the
            attention starts at zero and A is ``gate(z) - gate(0)`` instead of ``gate(z)``, or, without `residual`,
            ``1 + gate(z) - gate(0)``, the same layer. That is a change of the formula, not the paper's.
        impl: ``"per_sample"`` forms each sample's kernel; ``"taps"`` gates each tap's product (not for
            share="none"); ``"fused"`` is the native core's on a CPU in float32 or bfloat16, without second gradients;
            ``"auto"`` chooses by shape (:func:`~leanconv.nn.aw_functional.choose`). Same function.

    ``torch.export`` and ONNX get a form in which batch, height and width may be dynamic, whatever `impl` says.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, H', W'], PyTorch's sizes. Memory format: the input's.
    Raises: ValueError for an unknown choice; what ``nn.Conv2d`` raises. Batch norm raises in training where it gets one
    value a channel: one sample, and a 1x1 kernel or pool="one".

    Zhu et al., "An Attention Module for Convolutional Neural Networks", arXiv 2108.08205. Only the abstract and parts
    quoted elsewhere could be read. From those: the operator, the residual form, pooling, the two 1x1 convolutions with
    ReLU. [recall], no readable source confirms it: the pooled size, sharing along the inputs, rd_ratio 16, the norms,
    the sigmoid.
    [open]: groups (the maps of a grouped convolution have its weight's shape), biases (none).

    >>> layer = AWConv2d(32, 64, 3, padding=1, start="identity")
    >>> x = torch.randn(2, 32, 8, 8)
    >>> layer.attention(x).shape
    torch.Size([2, 64, 32, 3, 3])
    >>> plain = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    >>> torch.allclose(layer(x), plain, atol=1e-5)
    True
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        rd_ratio: int = 16,
        share: str = "in",
        residual: bool = True,
        gate: str = "sigmoid",
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        pool: str = "kernel",
        start: str = "half",
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device=device, dtype=dtype
        )
        check_choice("impl", impl, ("auto", *IMPLEMENTATIONS))
        if impl == "taps" and share == "none":
            raise ValueError("impl='taps' needs maps shared along the inputs or outputs: share='none' has impl='auto'")
        at_zero = GATES[check_choice("gate", gate, tuple(GATES))][1]
        identity = check_choice("start", start, STARTS) == "identity"
        self.share, self.residual, self.impl = share, residual, impl
        self.attn = WeightAttention(
            in_channels,
            out_channels,
            self.kernel_size,
            groups,
            rd_ratio=rd_ratio,
            share=share,
            pool=pool,
            gate=gate,
            norm_layer=norm_layer,
            offset=(0.0 if residual else 1.0) - at_zero if identity else 0.0,
            start_at_zero=identity,
            device=device,
            dtype=dtype,
        )
        pads = self._reversed_padding_repeated_twice
        self.padding_sizes = (pads[2], pads[0], pads[3], pads[1])

    def attention(self, x: Tensor) -> Tensor:
        """A, [N, out_channels, in_channels / groups, h, w]; where it is shared, a view of fewer values if possible."""
        g = self.groups
        sizes = (x.shape[0], g, self.out_channels // g, self.in_channels // g, *self.kernel_size)
        return self.attn(x).expand(sizes).flatten(1, 2)

    def forward(self, input: Tensor) -> Tensor:
        if is_lowering():
            flat = self.attn.flat(input)
            gain = 1 + flat if self.residual else flat
            window = (list(self.stride), list(self.padding_sizes), list(self.dilation), self.groups)
            return torch.ops.leanconv.gated_conv(input, gain, self.weight, self.bias, self.share, *window)
        maps = self.attn(input)
        gain = 1 + maps if self.residual else maps
        return gated_conv2d(
            input,
            self.weight,
            gain,
            self.bias,
            self.stride,
            self.padding_sizes,
            self.dilation,
            self.groups,
            self.impl,
        )

    def extra_repr(self) -> str:
        residual = "" if self.residual else ", residual=False"
        return f"{super().extra_repr()}, share={self.share}{residual}, impl={self.impl}"
