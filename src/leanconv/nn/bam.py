"""BAM, the bottleneck attention module (Park et al., arXiv 1807.06514): a gate of the shape of the whole map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class BAM(nn.Module):
    """``y = x * (1 + sigmoid(channel(x) * spatial(x)))``: a gate for every channel and position.

    ``channel``: mean over the map, 1x1 to the hidden width, norm, ReLU, 1x1 back: [N, C, 1, 1].
    ``spatial``: 1x1 to the hidden width, two dilated 3x3, each with norm and ReLU, 1x1 to one channel: [N, 1, H, W].
    The hidden width is ``max(channels // rd_ratio, 1)``; all convolutions have biases.

    Args:
        rd_ratio: channels over hidden width, an integer (not timm's fraction).
        dilation: of the two 3x3 convolutions.
        norm_layer: called with the hidden width, as ``nn.BatchNorm2d``. The channel branch normalises a 1x1 map, so
            batch norm needs more than one picture in training.

    Shapes: [N, channels, H, W] -> same. Raises: ValueError for an impossible ratio or dilation.

    Source: the authors' published code has the product, these layers, reduction 16 and dilation 4, and puts the module
    after stages 1 to 3 of a residual network. The paper's text adds the two branches instead ([recall]: it was not
    read here). Initial weights are PyTorch's.

    >>> import torch
    >>> BAM(32)(torch.randn(2, 32, 7, 5)).shape
    torch.Size([2, 32, 7, 5])
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: int = 16,
        dilation: int = 4,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(rd_ratio, int) or rd_ratio < 1:
            raise ValueError(f"rd_ratio is what the channels are divided by, an integer of at least 1, not {rd_ratio}")
        if dilation < 1:
            raise ValueError(f"dilation must be at least 1, got {dilation}")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = max(channels // rd_ratio, 1)

        def step(in_channels: int, kernel_size: int = 1) -> list[nn.Module]:
            spread = dilation if kernel_size > 1 else 1
            padding = spread * (kernel_size // 2)
            conv = nn.Conv2d(in_channels, hidden, kernel_size, padding=padding, dilation=spread, **made)
            return [conv, norm_layer(hidden).to(**made), nn.ReLU(inplace=True)]

        self.channel = nn.Sequential(*step(channels), nn.Conv2d(hidden, channels, 1, **made))
        self.spatial = nn.Sequential(
            *step(channels), *step(hidden, 3), *step(hidden, 3), nn.Conv2d(hidden, 1, 1, **made)
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.channel(x.mean((2, 3), keepdim=True)) * self.spatial(x)
        return x * (1 + gate.sigmoid())
