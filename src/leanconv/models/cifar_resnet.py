"""Float residual networks for small pictures: the twins of the binary ones in :mod:`leanconv.models.bireal`.

ResNet (He et al., arXiv 1512.03385) with a 3x3 stem and no stem pooling; ``resnet20_cifar`` has the widths 16, 32, 64
of its section 4.2, with a 1x1 convolution in the shortcuts that change shape. Those with attention have timm's layers
in every block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import EcaModule, SEModule
from timm.layers.cbam import CbamModule
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from leanconv.models._registry import cifar_cfg, digits_cfg, register
from leanconv.models.residual import build

DIGITS_LAYERS = (1, 1, 1)
DIGITS_CHANNELS = (32, 64, 128)
ATTENTION: dict[str, Callable[[int], nn.Module]] = {  # hidden width: a 16th of the channels, not rounded to 8
    "se": partial(SEModule, rd_divisor=1),
    "cbam": CbamModule,
    "eca": EcaModule,
}


class BasicBlock(nn.Module):
    """conv 3x3 -> BN -> ReLU -> conv 3x3 -> BN -> attention -> add the shortcut -> ReLU.

    Args:
        attn_layer: attention on the branch, from timm: ``"se"``, ``"cbam"`` (both with reduction 16) or ``"eca"``; or
            what makes a layer from a number of channels. None: none.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    Raises: ValueError for an unknown attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        attn_layer: str | Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(attn_layer, str) and attn_layer not in ATTENTION:
            raise ValueError(f"unknown attention {attn_layer!r}: expected one of {', '.join(ATTENTION)}")
        attention = ATTENTION[attn_layer] if isinstance(attn_layer, str) else attn_layer
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.attn: nn.Module | None = attention(out_channels) if attention is not None else None
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.attn is not None:
            x = self.attn(x)
        return self.act2(x + shortcut)


_relu = partial(nn.ReLU, inplace=True)

default_cfgs = generate_default_cfgs(
    {
        "resnet20_cifar": cifar_cfg(),
        "resnet56_cifar": cifar_cfg(),
        "se_resnet20_cifar": cifar_cfg(),
        "se_resnet56_cifar": cifar_cfg(),
        "cbam_resnet20_cifar": cifar_cfg(),
        "cbam_resnet56_cifar": cifar_cfg(),
        "resnet18_cifar": cifar_cfg(pool_size=(4, 4)),
        "resnet_digits": digits_cfg(),
    }
)


def build_cifar(name: str, pretrained: bool, depth: int, **kwargs: Any) -> nn.Module:
    """A residual network of `depth` = 6 n + 2 for 32x32 pictures: three stages of n blocks, widths 16, 32, 64."""
    args: dict[str, Any] = {"stem": "cifar", "stem_act": _relu} | kwargs
    return build(name, pretrained, BasicBlock, ((depth - 2) // 6,) * 3, (16, 32, 64), **args)


@register()
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 for 32x32 pictures: three stages of three blocks, widths 16, 32, 64."""
    return build_cifar("resnet20_cifar", pretrained, 20, **kwargs)


@register()
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-56 for 32x32 pictures: three stages of nine blocks, widths 16, 32, 64."""
    return build_cifar("resnet56_cifar", pretrained, 56, **kwargs)


@register()
def se_resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 for 32x32 pictures with squeeze-and-excitation (arXiv 1709.01507), reduction 16."""
    return build_cifar("se_resnet20_cifar", pretrained, 20, **{"attn_layer": "se"} | kwargs)


@register()
def se_resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-56 for 32x32 pictures with squeeze-and-excitation (arXiv 1709.01507), reduction 16."""
    return build_cifar("se_resnet56_cifar", pretrained, 56, **{"attn_layer": "se"} | kwargs)


@register()
def cbam_resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 for 32x32 pictures with CBAM (arXiv 1807.06521), reduction 16, 7x7."""
    return build_cifar("cbam_resnet20_cifar", pretrained, 20, **{"attn_layer": "cbam"} | kwargs)


@register()
def cbam_resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-56 for 32x32 pictures with CBAM (arXiv 1807.06521), reduction 16, 7x7."""
    return build_cifar("cbam_resnet56_cifar", pretrained, 56, **{"attn_layer": "cbam"} | kwargs)


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
