"""ReActNet on ResNet-18 (Liu et al., arXiv 2003.03488): Bi-Real's network with learnable shifts of signs and
activations.

Block: RSign -> binary 3x3 -> BN -> add the shortcut -> RPReLU. Stem, shortcuts that change shape, weight scale and
gradients are Bi-Real's. [recall]: written from memory of the paper, without its code; the paper describes the
ResNet variant in a few words only.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn

from leanconv.models._registry import cifar_cfg, picture_cfg, register
from leanconv.models.bireal import BiRealBlock
from leanconv.models.residual import build
from leanconv.nn import RPReLU


class ReActBlock(BiRealBlock):
    """:class:`~leanconv.models.bireal.BiRealBlock` with :class:`~leanconv.nn.RSign` and, after each addition,
    :class:`~leanconv.nn.RPReLU`."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, binarize_input: str = "rsign", **binary: Any
    ) -> None:
        super().__init__(in_channels, out_channels, stride, binarize_input=binarize_input, **binary)
        self.act1 = RPReLU(out_channels)
        self.act2 = RPReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)) + shortcut)
        return self.act2(self.bn2(self.conv2(x)) + x)


_PAPER = {"paper_ids": "arXiv:2003.03488", "paper_name": "ReActNet"}

default_cfgs = generate_default_cfgs(
    {"reactnet18": picture_cfg(224, **_PAPER), "reactnet18_cifar": cifar_cfg(pool_size=(4, 4), **_PAPER)}
)


@register(float_twin="resnet18")
def reactnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ReActNet-18: 16 binary 3x3 convolutions, ImageNet stem."""
    return build("reactnet18", pretrained, ReActBlock, (2, 2, 2, 2), (64, 128, 256, 512), **kwargs)


@register(float_twin="resnet18_cifar")
def reactnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ReActNet-18 for 32x32 pictures: 3x3 stem, no stem pooling."""
    args: dict[str, Any] = {"stem": "cifar"} | kwargs
    return build("reactnet18_cifar", pretrained, ReActBlock, (2, 2, 2, 2), (64, 128, 256, 512), **args)
