"""ResNetE (Bethge et al., arXiv 1906.08637): a residual network with a shortcut around every binary convolution.

Bi-Real's block with unscaled weights and straight-through gradients; the stem has a ReLU and a second batch norm after
its pooling, and a ReLU ends the last stage. So in larq/zoo's `literature/resnet_e.py` (clip 1.25), whose parameter
count this network matches; the paper itself was not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs
from torch import nn

from leanconv.models._registry import picture_cfg, register
from leanconv.models._straight_through import straight_through
from leanconv.models.bireal import BiRealBlock
from leanconv.models.residual import Block, ResidualNet, build


class ResNetEBlock(BiRealBlock):
    """:class:`~leanconv.models.bireal.BiRealBlock` with unscaled weights and straight-through gradients, cut at
    |x| > `clip`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        binarize_input: Any = "ste_sign",
        binarize_weight: Any = "sign",
        clip: float = 1.25,
        pad_value: int = 0,
    ) -> None:
        binary = straight_through(binarize_input, binarize_weight, clip)
        super().__init__(in_channels, out_channels, stride, pad_value=pad_value, **binary)


class ResNetE(ResidualNet):
    """A :class:`~leanconv.models.residual.ResidualNet` with batch norm after the stem's pooling and ReLU at the end."""

    def __init__(self, block: Block, layers: Sequence[int], channels: Sequence[int], **kwargs: Any) -> None:
        super().__init__(block, layers, channels, **kwargs)
        self.add_module("maxpool", nn.Sequential(self.get_submodule("maxpool"), nn.BatchNorm2d(channels[0])))
        last: nn.Sequential = self.get_submodule(self.chain[-1])  # type: ignore[assignment]
        last.append(nn.ReLU())

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return super().group_matcher(coarse) | {"stem": r"^conv1|bn1|maxpool"}


default_cfgs = generate_default_cfgs(
    {"resnete18": picture_cfg(224, paper_ids="arXiv:1906.08637", paper_name="ResNetE")}
)


@register(float_twin="resnet18")
def resnete18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNetE-18: 16 binary 3x3 convolutions, ImageNet stem."""
    args = {"stem_act": partial(nn.ReLU, inplace=True)} | kwargs
    return build("resnete18", pretrained, ResNetEBlock, (2, 2, 2, 2), (64, 128, 256, 512), net=ResNetE, **args)
