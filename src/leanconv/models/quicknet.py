"""QuickNet (Bannink et al., arXiv 2011.09398): residual binary 3x3 layers, a separable stem, blurred transitions.

Structure and clip as in version 1.0 of larq/zoo's `sota/quicknet.py`, whose parameter counts these networks match; the
paper itself was not read. One difference: the stem's strided convolutions pad one pixel on each side, as is usual in
PyTorch, where TensorFlow pads on the right and at the bottom only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.models._registry import picture_cfg, register
from leanconv.models._straight_through import straight_through
from leanconv.models.staged import StagedNet
from leanconv.nn import BinaryConv2d


class QuickNetLayer(nn.Module):
    """``x + bn(relu(conv(sign(x))))``, a binary 3x3 convolution padded with +1.

    Args: clip: where straight-through gradients end; the rest as in :class:`leanconv.nn.BinaryConv2d`.
    Shapes: [N, channels, H, W] -> same.
    """

    def __init__(
        self,
        channels: int,
        *,
        binarize_input: Any = "ste_sign",
        binarize_weight: Any = "sign",
        clip: float = 1.25,
        pad_value: int = 1,
    ) -> None:
        super().__init__()
        binary = straight_through(binarize_input, binarize_weight, clip)
        self.conv = BinaryConv2d(channels, channels, 3, padding=1, pad_value=pad_value, **binary)
        self.act = nn.ReLU()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.act(self.conv(x))) + x


class Blur(nn.Module):
    """A fixed depthwise 3x3 convolution with ``[1, 2, 1] x [1, 2, 1] / 16``, stride 2: anti-aliased subsampling
    (arXiv 1904.11486). Zero padding, as in larq/zoo.

    Shapes: [N, channels, H, W] -> [N, channels, ceil(H / 2), ceil(W / 2)].

    >>> Blur(1)(torch.ones(1, 1, 5, 5)).squeeze().tolist()[1]
    [0.75, 1.0, 0.75]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        kernel = torch.outer(taps, taps) / 16
        self.register_buffer("kernel", kernel.expand(channels, 1, 3, 3).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, stride=2, padding=1, groups=x.shape[1])  # type: ignore[arg-type]


class QuickNetTransition(nn.Sequential):
    """ReLU -> 2x2 max pool stride 1 -> :class:`Blur` -> real-valued 1x1 convolution -> BN.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, H // 2, W // 2]; H and W at least 2.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(2, stride=1)
        self.blur = Blur(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)


class QuickNet(StagedNet):
    """Separable stem -> sections ``layer1``, ``layer2``, ... of :class:`QuickNetLayer`, a transition before each but
    the first -> ReLU (the end of the last section) -> global pooling -> ``fc``.

    Args:
        layers, channels: binary layers and width of each section.
        num_classes, in_chans, global_pool, drop_rate: as in timm; num_classes 0 returns the pooled features.

    Shapes: [N, in_chans, H, W] -> [N, num_classes]; H and W at least 32.
    Raises: ValueError where `layers` and `channels` do not have the same length.
    """

    def __init__(
        self,
        layers: Sequence[int],
        channels: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **layer_args: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        if len(layers) != len(channels):
            raise ValueError(f"one width a section: got {len(layers)} sections and {len(channels)} widths")
        self.append("stem", quicknet_stem(in_chans, channels[0]), channels[0], 4)
        width, reduction = channels[0], 4
        for i, (depth, out) in enumerate(zip(layers, channels, strict=True), start=1):
            blocks: list[nn.Module] = []
            if i > 1:
                blocks.append(QuickNetTransition(width, out))
                width, reduction = out, reduction * 2
            blocks += [QuickNetLayer(width, **layer_args) for _ in range(depth)]
            if i == len(layers):
                blocks.append(nn.ReLU())
            self.append(f"layer{i}", nn.Sequential(*blocks), width, reduction)
        self.close(width, global_pool)


def quicknet_stem(in_chans: int, channels: int) -> nn.Sequential:
    """3x3 stride 2 to a quarter of the channels, BN, ReLU; depthwise 3x3 stride 2, BN; 1x1, BN."""
    quarter = channels // 4
    made = nn.Sequential()
    made.add_module("conv1", nn.Conv2d(in_chans, quarter, 3, stride=2, padding=1, bias=False))
    made.add_module("bn1", nn.BatchNorm2d(quarter))
    made.add_module("act1", nn.ReLU())
    made.add_module("conv2", nn.Conv2d(quarter, quarter, 3, stride=2, padding=1, groups=quarter, bias=False))
    made.add_module("bn2", nn.BatchNorm2d(quarter, affine=False))
    made.add_module("conv3", nn.Conv2d(quarter, channels, 1, bias=False))
    made.add_module("bn3", nn.BatchNorm2d(channels))
    return made


_PAPER = {"paper_ids": "arXiv:2011.09398", "paper_name": "QuickNet", "first_conv": "stem.conv1"}

default_cfgs = generate_default_cfgs(
    {name: picture_cfg(224, **_PAPER) for name in ("quicknet_small", "quicknet", "quicknet_large")}
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    args = {"layers": (4, 4, 4, 4), "channels": (64, 128, 256, 512)} | kwargs
    out_indices = tuple(range(len(args["layers"]) + 1))
    return build_model_with_cfg(QuickNet, name, pretrained, feature_cfg={"out_indices": out_indices}, **args)


@register(float_twin="resnet18")
def quicknet_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """QuickNetSmall: 16 binary 3x3 convolutions, widths 32, 64, 256, 512."""
    return _build("quicknet_small", pretrained, **{"channels": (32, 64, 256, 512)} | kwargs)


@register(float_twin="resnet18")
def quicknet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """QuickNet: 16 binary 3x3 convolutions, widths 64, 128, 256, 512."""
    return _build("quicknet", pretrained, **kwargs)


@register(float_twin="resnet34")
def quicknet_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """QuickNetLarge: 32 binary 3x3 convolutions, widths 64, 128, 256, 512."""
    return _build("quicknet_large", pretrained, **{"layers": (6, 8, 12, 6)} | kwargs)
