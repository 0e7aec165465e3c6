"""REAF's convolution: every group of output channels reads a window of the input channels, and windows may overlap.

"REAF: Reducing Approximation of Channels by Reducing Feature Reuse Within Convolution" (Zhu, Al-Ars, Hofstee, IEEE
Access 8, 2020). Only its abstract could be read: output channels that all read the same input maps approximate each
other, reading specialised maps reduces that, and group convolution is a special case [paper]. Overlapping index sets
are our **reconstruction** [inferred], held at about 45 %: sets of channels on their own, or a nonlinearity for each
set, fit the abstract, too. Kin: channel-local convolution (arXiv 1712.06145) and sliding-channel convolution (DSXplore,
IPDPS 2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.nn import markers  # noqa: F401  (registers the operators)
from leanconv.nn.exporting import is_exporting, is_lowering

Size = int | tuple[int, ...]

IMPLS = ("auto", "slices", "gather")
MOST_SLICES = 16  # CPU, one thread, 3x3 and 1x1 on 14 to 56 pixels: slices win up to here, from 32 sets on it depends


def channel_sets(in_channels: int, sets: int, window: int, shift: int) -> list[list[int]]:
    """The input channels of each set: ``S_g = [(g * shift + j) mod in_channels, j = 0..window-1]``.

    >>> channel_sets(6, sets=3, window=4, shift=2)
    [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 0, 1]]
    """
    return [[(g * shift + j) % in_channels for j in range(window)] for g in range(sets)]


class ReafConv2d(nn.Conv2d):
    """2-d convolution whose output channels read overlapping windows of the input channels.

    ``y[n, o] = bias[o] + sum_{j < window} weight[o, j] * x[n, (g(o) * shift + j) mod in_channels]`` with
    ``g(o) = floor(o * sets / out_channels)`` and ``*`` a 2-d cross-correlation. Its gradients are the true ones: a
    channel collects those of every set that reads it.

    ``sets=1, window=in_channels`` is an ordinary convolution, ``window = shift = in_channels / sets`` a group
    convolution, ``sets = in_channels, window = shift = 1`` a depthwise one; all three run on the input as it is. An
    output pixel costs ``k^2 * window * out_channels`` multiply-adds, ``overlap = window * sets / in_channels`` times
    those of a group convolution.

    The construction is [inferred], not the paper's text (see the module).

    Args:
        sets: G, groups of output channels; consecutive output channels share a set.
        window: n, how many input channels a set reads. shift: s, from one set's first channel to the next one's.
            Channels that no set reads have no effect.
        impl: how overlapping sets are computed. ``"slices"``: a convolution for each set, on a view of its channels
            where the picture's memory allows (a set that wraps around is copied), then a concatenation. ``"gather"``:
            a copy of all sets' channels, then one group convolution. ``"auto"`` (default): slices up to 16 sets, which
            was faster on a CPU; no GPU was measured. Exported graphs always have the gather.

    Shapes: x [N, in_channels, H, W]; weight [out_channels, window, k, k]; y [N, out_channels, H', W'], PyTorch's sizes.
        ``groups`` is 1, whatever the sets.
    Raises: ValueError for sizes that don't fit or an unknown impl, and what ``nn.Conv2d`` raises.

    >>> layer = ReafConv2d(64, 128, 3, padding=1, sets=4, window=32, shift=16)
    >>> layer(torch.randn(2, 64, 9, 9)).shape, layer.weight.shape
    (torch.Size([2, 128, 9, 9]), torch.Size([128, 32, 3, 3]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        bias: bool = True,
        *,
        sets: int,
        window: int,
        shift: int,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        for name, value in (("sets", sets), ("window", window), ("shift", shift)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if out_channels % sets:
            raise ValueError(f"out_channels ({out_channels}) must be a multiple of sets ({sets})")
        if window > in_channels:
            raise ValueError(f"window ({window}) must not exceed in_channels ({in_channels})")
        if impl not in IMPLS:
            raise ValueError(f"unknown impl {impl!r}: expected one of {', '.join(IMPLS)}")
        super().__init__(
            window,  # what a filter reads: its weight and their initial spread
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.in_channels = in_channels
        self.sets, self.window, self.shift, self.impl = sets, window, shift, impl

    @classmethod
    def from_layer(
        cls,
        old: nn.Conv2d,
        *,
        sets: int,
        overlap: float = 2,
        window: int | None = None,
        shift: int | None = None,
        impl: str = "auto",
    ) -> ReafConv2d:
        """The layer that :func:`~leanconv.nn.convert` puts in the place of `old`.

        Each filter keeps the weights of the channels in its window and loses the others; they are not rescaled. A
        channel that a group convolution's filter did not read begins with weight 0, so windows that hold all that
        `old` read leave its function as it was.

        Args: shift: by default ``in_channels / sets``; window: by default ``overlap * shift``.
        Raises: ValueError where these are no whole numbers, or `old` pads with anything but zeros.

        >>> old = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        >>> new, x = ReafConv2d.from_layer(old, sets=4, overlap=2), torch.randn(1, 8, 5, 5)
        >>> new.window, torch.allclose(new(x), old(x), atol=1e-6)
        (4, True)
        """
        if old.padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', got {old.padding_mode!r}")
        channels = old.in_channels
        if shift is None:
            if channels % sets:
                raise ValueError(f"{channels} input channels do not divide into {sets} sets; give window and shift")
            shift = channels // sets
        if window is None:
            window = round(overlap * shift)
            if window != overlap * shift:
                raise ValueError(f"overlap ({overlap}) times shift ({shift}) must be a whole number; or give window")
        made = cls(
            channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            old.dilation,
            old.bias is not None,
            sets=sets,
            window=window,
            shift=shift,
            impl=impl,
            device=old.weight.device,
            dtype=old.weight.dtype,
        )
        per_group = channels // old.groups
        first = torch.arange(old.groups, device=old.weight.device) * per_group
        first = first.repeat_interleave(old.out_channels // old.groups)  # first channel that each old filter reads
        tap = made.index(old.weight.device).repeat_interleave(old.out_channels // sets, 0) - first[:, None]
        read = ((tap >= 0) & (tap < per_group))[:, :, None, None]
        tap = tap.clamp(0, per_group - 1)[:, :, None, None].expand(-1, -1, *old.kernel_size)
        with torch.no_grad():
            made.weight.copy_(old.weight.gather(1, tap) * read)
        made.weight.requires_grad_(old.weight.requires_grad)
        made.bias = old.bias
        return made

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-3] != self.in_channels:
            raise ValueError(f"expected {self.in_channels} input channels, got {input.shape[-3]}")
        if is_lowering():
            pads = self._reversed_padding_repeated_twice
            padding = [pads[2], pads[0], pads[3], pads[1]]  # top, left, bottom, right
            window = (list(self.stride), padding, list(self.dilation), self.sets, self.shift)
            return torch.ops.leanconv.windowed_conv(input, self.weight, self.bias, *window)
        if self.sets == 1:
            return self._conv(self._slice(input, 0, self.window), self.weight, self.bias)
        if self.window == self.shift and self.sets * self.window <= self.in_channels:
            return self._conv(self._slice(input, 0, self.sets * self.window), self.weight, self.bias, self.sets)
        gather = self.impl == "gather" or (self.impl == "auto" and self.sets > MOST_SLICES)
        if gather or is_exporting():
            gathered = input.index_select(-3, self.index(input.device).flatten())
            return self._conv(gathered, self.weight, self.bias, self.sets)
        weights = self.weight.chunk(self.sets)
        biases = [None] * self.sets if self.bias is None else self.bias.chunk(self.sets)
        outputs = [
            self._conv(self._slice(input, g * self.shift % self.in_channels, self.window), weight, bias)
            for g, (weight, bias) in enumerate(zip(weights, biases, strict=True))
        ]
        return torch.cat(outputs, -3)

    def index(self, device: torch.device) -> Tensor:
        """The input channels of each set, :func:`channel_sets` as a tensor [sets, window]."""
        first = torch.arange(self.sets, device=device)[:, None] * self.shift
        return (first + torch.arange(self.window, device=device)) % self.in_channels

    def _slice(self, x: Tensor, start: int, count: int) -> Tensor:
        """`count` channels from `start` on, cyclic."""
        if count == self.in_channels and start == 0:
            return x
        inside = min(count, self.in_channels - start)
        head = x.narrow(-3, start, inside)
        return head if inside == count else torch.cat([head, x.narrow(-3, 0, count - inside)], -3)

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sets={self.sets}, window={self.window}, shift={self.shift}"
