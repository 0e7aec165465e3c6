"""Float residual networks for small pictures: the twins of the binary ones in :mod:`leanconv.models.bireal`.

ResNet (He et al., arXiv 1512.03385) with a 3x3 stem and no stem pooling; ``resnet20_cifar`` has the widths 16, 32, 64
of its section 4.2, with a 1x1 convolution in the shortcuts that change shape.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn

from leanconv.models._registry import cifar_cfg, digits_cfg, register
from leanconv.models.residual import build

DIGITS_LAYERS = (1, 1, 1)
DIGITS_CHANNELS = (32, 64, 128)


class BasicBlock(nn.Module):
    """conv 3x3 -> BN -> ReLU -> conv 3x3 -> BN -> add the shortcut -> ReLU.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)) + shortcut)


_relu = partial(nn.ReLU, inplace=True)

default_cfgs = generate_default_cfgs(
    {
        "resnet20_cifar": cifar_cfg(),
        "resnet18_cifar": cifar_cfg(),
        "resnet_digits": digits_cfg(),
    }
)


@register()
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 for 32x32 pictures: three stages of three blocks, widths 16, 32, 64."""
    args: dict[str, Any] = {"stem": "cifar", "stem_act": _relu} | kwargs
    return build("resnet20_cifar", pretrained, BasicBlock, (3, 3, 3), (16, 32, 64), **args)


@register()
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 for 32x32 pictures: four stages of two blocks, widths 64 to 512, 3x3 stem."""
    args: dict[str, Any] = {"stem": "cifar", "stem_act": _relu} | kwargs
    return build("resnet18_cifar", pretrained, BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), **args)


@register()
def resnet_digits(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small residual network for 8x8 one-channel digits."""
    args: dict[str, Any] = {"stem": "cifar", "stem_act": _relu} | kwargs
    return build("resnet_digits", pretrained, BasicBlock, DIGITS_LAYERS, DIGITS_CHANNELS, **args)
