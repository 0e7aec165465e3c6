"""Bi-Real networks (Liu et al., arXiv 1808.00278): residual networks with a shortcut around every binary convolution.

Block: sign -> binary 3x3 -> BN -> add the shortcut; no ReLU in the body. Stem 7x7 stride 2, BN, 3x3 max pool, without
ReLU. The first and the last layer and the shortcuts that change shape (2x2 average pool -> 1x1 convolution -> BN) are
real-valued. Activation gradient: the approximate sign; weights: sign times the detached mean magnitude of each
filter. So in the authors' code; the CIFAR and digits variants are ours (3x3 stem, no stem pooling).
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn

from leanconv.models._registry import cifar_cfg, digits_cfg, picture_cfg, register
from leanconv.models.cifar_resnet import DIGITS_CHANNELS, DIGITS_LAYERS
from leanconv.models.residual import build
from leanconv.nn import BinaryConv2d


class BiRealBlock(nn.Module):
    """Two binary 3x3 convolutions, each followed by BN and with a shortcut of its own.

    ``x = bn1(conv1(sign(x))) + shortcut(x)``, then ``x = bn2(conv2(sign(x))) + x``. Named like ResNet's basic block,
    so that the layers of a network and of its float twin have the same names.

    Args:
        binarize_input, binarize_weight, pad_value: those of :class:`leanconv.nn.BinaryConv2d`, by name.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]; odd sizes too, since the
    shortcut pools with ceil_mode.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        binarize_input: str = "approx_sign",
        binarize_weight: str = "magnitude",
        pad_value: int = 0,
    ) -> None:
        super().__init__()
        binary: dict[str, Any] = {
            "padding": 1,
            "pad_value": pad_value,
            "binarize_input": binarize_input,
            "binarize_weight": binarize_weight,
        }
        self.conv1 = BinaryConv2d(in_channels, out_channels, 3, stride=stride, **binary)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = BinaryConv2d(out_channels, out_channels, 3, **binary)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride != 1 else nn.Identity()
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.downsample = nn.Sequential(pool, conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)) + shortcut
        return self.bn2(self.conv2(x)) + x


_PAPER = {"paper_ids": "arXiv:1808.00278", "paper_name": "Bi-Real Net"}

default_cfgs = generate_default_cfgs(
    {
        "bireal_resnet18": picture_cfg(224, **_PAPER),
        "bireal_resnet34": picture_cfg(224, **_PAPER),
        "bireal_resnet20_cifar": cifar_cfg(**_PAPER),
        "bireal_resnet18_cifar": cifar_cfg(pool_size=(4, 4), **_PAPER),
        "bireal_digits": digits_cfg(**_PAPER),
    }
)


@register(float_twin="resnet18")
def bireal_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Bi-Real ResNet-18: 16 binary 3x3 convolutions, ImageNet stem."""
    return build("bireal_resnet18", pretrained, BiRealBlock, (2, 2, 2, 2), (64, 128, 256, 512), **kwargs)


@register(float_twin="resnet34")
def bireal_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Bi-Real ResNet-34: 32 binary 3x3 convolutions, ImageNet stem."""
    return build("bireal_resnet34", pretrained, BiRealBlock, (3, 4, 6, 3), (64, 128, 256, 512), **kwargs)


@register(float_twin="resnet20_cifar")
def bireal_resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Bi-Real ResNet-20 for 32x32 pictures: 18 binary 3x3 convolutions, widths 16, 32, 64, 3x3 stem."""
    args = {"stem": "cifar"} | kwargs
    return build("bireal_resnet20_cifar", pretrained, BiRealBlock, (3, 3, 3), (16, 32, 64), **args)


@register(float_twin="resnet18_cifar")
def bireal_resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Bi-Real ResNet-18 for 32x32 pictures: 16 binary 3x3 convolutions, widths 64 to 512, 3x3 stem."""
    args = {"stem": "cifar"} | kwargs
    return build("bireal_resnet18_cifar", pretrained, BiRealBlock, (2, 2, 2, 2), (64, 128, 256, 512), **args)


@register(float_twin="resnet_digits")
def bireal_digits(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small Bi-Real network for 8x8 one-channel digits: six binary 3x3 convolutions."""
    args = {"stem": "cifar"} | kwargs
    return build("bireal_digits", pretrained, BiRealBlock, DIGITS_LAYERS, DIGITS_CHANNELS, **args)
