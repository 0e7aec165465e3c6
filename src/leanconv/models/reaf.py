"""REAF residual networks (Zhu, Al-Ars, Hofstee, IEEE Access 8, 2020) at the cost of the networks they stand in for.

Only the paper's abstract could be read. It gives two deltas at a given computational budget: +0.37 top-1 for
REAF-ResNet50, +0.69 for REAF+-MobileNetV2 (:mod:`leanconv.models.reaf_mobilenet`) [paper], neither reproduced here.
Layer (:mod:`leanconv.nn.reaf_conv`), widths and where REAF goes are our **reconstruction** [inferred], held at about
45 %. The rule everywhere: each output reads `overlap / sets` of the channels and the saving buys wider blocks, so
multiply-adds stay. The equal-cost control has the same widths and the same inputs for each output, as disjoint groups:
what it gains is grouping and width, what REAF gains beyond it is overlap.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from leanconv.models._registry import cifar_cfg, picture_cfg, register
from leanconv.models.cifar_resnet import BasicBlock
from leanconv.models.residual import build
from leanconv.nn.reaf_conv import ReafConv2d

PLANES = (64, 128, 256, 512)
# Widths of the 3x3 layers, by (sets, overlap), that keep ResNet-50's 4089 M multiply-adds at 224x224 within 0.5 %.
# The first block of a stage runs its first 1x1 at four times the resolution; the last width makes up for it.
RESNET50_WIDTHS = {
    (2, 1): (80, 160, 320, 624),
    (4, 1): (96, 192, 384, 720),
    (4, 2): (80, 160, 320, 624),
    (8, 1): (104, 216, 440, 856),
    (8, 2): (96, 192, 384, 720),
    (16, 1): (112, 240, 480, 912),
    (16, 2): (96, 208, 432, 976),
    (32, 2): (96, 224, 480, 1088),
}


def arm(sets: int, overlap: int, control: bool) -> tuple[int, int]:
    """(sets, overlap) of a REAF network, or of its control: ``sets / overlap`` disjoint groups.

    Raises: ValueError where those are no whole number.

    >>> arm(8, 2, control=False), arm(8, 2, control=True)
    ((8, 2), (4, 1))
    """
    if control and sets % overlap:
        raise ValueError(f"no control for sets={sets}, overlap={overlap}: sets must be a multiple of overlap")
    return (sets // overlap, 1) if control else (sets, overlap)


class ReafBottleneck(Bottleneck):
    """timm's bottleneck block with a REAF convolution for its 3x3 one.

    Args: widths: the width of the 3x3 layer for each value of `planes`; sets, overlap: G and window * G / width (1: a
        group convolution); the rest, timm's.
    """

    def __init__(
        self, inplanes: int, planes: int, *args: Any, widths: dict[int, int], sets: int, overlap: int, **kwargs: Any
    ) -> None:
        kwargs["base_width"] = 64 * widths[planes] / planes
        super().__init__(inplanes, planes, *args, **kwargs)
        self.conv2 = ReafConv2d.from_layer(self.conv2, sets=sets, overlap=overlap)


class ReafPlusBottleneck(Bottleneck):
    """timm's ResNeXt block with sets that straddle the borders of its groups: as many channels in each window as in a
    group, `overlap` times as many sets, each shifted by ``window / overlap``.

    Multiply-adds and weights are those of the group convolution; channels mix across groups without a shuffle. Whether
    the paper's REAF+ does this is [open].
    """

    def __init__(self, *args: Any, overlap: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        groups = self.conv2.groups
        window = self.conv2.in_channels // groups
        if window % overlap:
            raise ValueError(f"overlap ({overlap}) must divide the {window} channels of a group")
        self.conv2 = ReafConv2d.from_layer(self.conv2, sets=groups * overlap, window=window, shift=window // overlap)


class ReafBasicBlock(BasicBlock):
    """conv 3x3 -> BN -> ReLU -> conv 3x3 -> BN -> add the shortcut -> ReLU, both convolutions REAF's.

    Between them are ``out_channels * sets / overlap`` channels, so that each convolution has exactly the multiply-adds
    and weights of the plain block's: ``k^2 (overlap in / sets) (sets out / overlap) = k^2 in out`` for the first, and
    likewise for the second. What the paper does with basic blocks is [open]; this rule is ours.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, sets: int = 4, overlap: int = 2
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        if out_channels * sets % overlap:
            raise ValueError(f"{out_channels} channels times sets ({sets}) must be a multiple of overlap ({overlap})")
        width = out_channels * sets // overlap
        self.conv1 = ReafConv2d.from_layer(
            nn.Conv2d(in_channels, width, 3, stride, 1, bias=False), sets=sets, overlap=overlap
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = ReafConv2d.from_layer(
            nn.Conv2d(width, out_channels, 3, padding=1, bias=False), sets=sets, overlap=overlap
        )


_PAPER = {"paper_name": "REAF (our reconstruction)"}
_IMAGENET = ("reaf_resnet50", "reaf_resnet50_control", "reaf_plus_resnext50")
_CIFAR = (
    "reaf_resnet20_cifar",
    "reaf_resnet20_cifar_control",
    "reaf_resnet56_cifar",
    "reaf_resnet56_cifar_control",
)

default_cfgs = generate_default_cfgs(
    {
        **{name: picture_cfg(224, **_PAPER) for name in _IMAGENET},
        **{name: cifar_cfg(**_PAPER) for name in _CIFAR},
    }
)


def _resnet50(
    name: str,
    pretrained: bool,
    *,
    sets: int = 4,
    overlap: int = 2,
    widths: tuple[int, ...] | None = None,
    control: bool,
    **kwargs: Any,
) -> nn.Module:
    widths = widths or RESNET50_WIDTHS.get((sets, overlap))
    if widths is None:
        known = ", ".join(map(str, RESNET50_WIDTHS))
        raise ValueError(f"no widths for sets={sets}, overlap={overlap}: give widths, or one of {known}")
    if len(widths) != len(PLANES) or any(width % sets for width in widths):
        raise ValueError(f"widths must be {len(PLANES)} multiples of sets ({sets}), got {tuple(widths)}")
    sets, overlap = arm(sets, overlap, control)
    block_args = {"widths": dict(zip(PLANES, widths, strict=True)), "sets": sets, "overlap": overlap}
    block_args |= kwargs.pop("block_args", {})
    return build_model_with_cfg(
        ResNet, name, pretrained, block=ReafBottleneck, layers=(3, 4, 6, 3), block_args=block_args, **kwargs
    )


@register()
def reaf_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """REAF-ResNet50: timm's ResNet-50 with REAF in its 3x3 layers, 4 sets of half the channels, 4100 M multiply-adds
    (ResNet-50: 4089 M). Other (sets, overlap) of `RESNET50_WIDTHS`, or with `widths`, cost at most 0.5 % more or what
    the widths cost."""
    return _resnet50("reaf_resnet50", pretrained, control=False, **kwargs)


@register()
def reaf_resnet50_control(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The control of ``reaf_resnet50`` with the same arguments: its widths, ``sets / overlap`` disjoint groups, exactly
    its multiply-adds and weights."""
    return _resnet50("reaf_resnet50_control", pretrained, control=True, **kwargs)


@register()
def reaf_plus_resnext50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """REAF+ on timm's ResNeXt-50 32x4d: 64 sets, half as far apart as they are wide, for 32 groups. Its control is
    ``resnext50_32x4d`` (overlap 1): exactly the same multiply-adds and weights. `overlap` may be 1, 2 or 4."""
    block_args = {"overlap": kwargs.pop("overlap", 2)} | kwargs.pop("block_args", {})
    args = {"cardinality": 32, "base_width": 4, "block_args": block_args} | kwargs
    return build_model_with_cfg(
        ResNet, "reaf_plus_resnext50", pretrained, block=ReafPlusBottleneck, layers=(3, 4, 6, 3), **args
    )


def _cifar(
    name: str, pretrained: bool, blocks: int, *, sets: int = 4, overlap: int = 2, control: bool, **kwargs: Any
) -> nn.Module:
    """A ResNet of 6 * blocks + 2 layers, widths 16, 32, 64."""
    sets, overlap = arm(sets, overlap, control)
    args: dict[str, Any] = {"stem": "cifar", "stem_act": nn.ReLU, "sets": sets, "overlap": overlap} | kwargs
    return build(name, pretrained, ReafBasicBlock, (blocks,) * 3, (16, 32, 64), **args)


@register()
def reaf_resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """REAF-ResNet20 for 32x32 pictures: 4 sets of half the channels, exactly the multiply-adds and convolution weights
    of ``resnet20_cifar``."""
    return _cifar("reaf_resnet20_cifar", pretrained, 3, control=False, **kwargs)


@register()
def reaf_resnet20_cifar_control(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The control of ``reaf_resnet20_cifar``: its widths, two disjoint groups."""
    return _cifar("reaf_resnet20_cifar_control", pretrained, 3, control=True, **kwargs)


@register()
def reaf_resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """REAF-ResNet56 for 32x32 pictures: as ``reaf_resnet20_cifar``, nine blocks a stage."""
    return _cifar("reaf_resnet56_cifar", pretrained, 9, control=False, **kwargs)


@register()
def reaf_resnet56_cifar_control(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The control of ``reaf_resnet56_cifar``: its widths, two disjoint groups."""
    return _cifar("reaf_resnet56_cifar_control", pretrained, 9, control=True, **kwargs)
