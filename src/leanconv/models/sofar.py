"""SoFAr's fractal networks (Zhu et al., arXiv 2009.05317): RF, one fractal unit of Bi-Real layers a stage, and DRF, a
dense network of fractal units of BinaryDenseNet layers.

Only the paper's abstract could be read. Depth, width and budget of the published names (RF-c4d8 ResNet37(41),
DRF-c2d2 DenseNet51(53)) fit the networks built here and few others; they are our **reconstruction** [inferred].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from leanconv.models._registry import cifar_cfg, picture_cfg, register
from leanconv.models.binary_densenet import binary_dense_unit
from leanconv.models.dense import DenseNet, build_dense
from leanconv.models.global_drop_path import GlobalDropPath
from leanconv.models.residual import ResidualNet, build
from leanconv.nn import BinaryConv2d
from leanconv.nn.fractal import BinaryResidualLayer, FractalUnit

SHORTCUTS = ("duplicate", "binary", "real")


class BinaryDownsample(nn.Module):
    """``bn(conv(sign(x))) + shortcut(x)`` with a binary 3x3 convolution of stride 2.

    Args:
        shortcut: after a 2x2 average pool, ``"duplicate"`` (channels twice, then cut to the width: no parameters;
            default, [open] in SoFAr), ``"binary"`` (binary 1x1, BN) or ``"real"`` (float 1x1, BN: Bi-Real's).
        binary: arguments of :class:`~leanconv.nn.BinaryConv2d`, by name.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / 2), ceil(W / 2)].
    Raises: ValueError for an unknown shortcut, or duplication to more than twice or less than the input's width.
    """

    def __init__(self, in_channels: int, out_channels: int, shortcut: str = "duplicate", **binary: Any) -> None:
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise ValueError(f"unknown shortcut {shortcut!r}: expected one of {', '.join(SHORTCUTS)}")
        if shortcut == "duplicate" and out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(f"channels cannot be duplicated from {in_channels} to {out_channels}; use shortcut='real'")
        self.conv = BinaryConv2d(in_channels, out_channels, 3, stride=2, padding=1, **binary)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.copies = out_channels // in_channels if shortcut == "duplicate" else 1
        self.project: nn.Module | None = None
        if shortcut == "binary":
            conv: nn.Module = BinaryConv2d(in_channels, out_channels, 1, **binary)
            self.project = nn.Sequential(conv, nn.BatchNorm2d(out_channels))
        elif shortcut == "real":
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.project = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.pool(x)
        if self.project is not None:
            shortcut = self.project(shortcut)
        elif self.copies > 1:
            shortcut = torch.cat([shortcut] * self.copies, 1)
        return self.bn(self.conv(x)) + shortcut


class ResidualFractalBlock(nn.Module):
    """A fractal unit of Bi-Real layers, after a downsampling layer where width or size change.

    Args: columns, join, merged, drop_path: those of :class:`~leanconv.nn.fractal.FractalUnit`; shortcut: that of
        :class:`BinaryDownsample`; the rest, of :class:`~leanconv.nn.BinaryConv2d`.
    """

    takes_column = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        columns: int = 4,
        join: str = "mean",
        merged: bool = True,
        drop_path: float = 0.0,
        shortcut: str = "duplicate",
        binarize_input: str = "approx_sign",
        binarize_weight: str = "magnitude",
        pad_value: int = 0,
    ) -> None:
        super().__init__()
        binary: dict[str, Any] = {
            "pad_value": pad_value,
            "binarize_input": binarize_input,
            "binarize_weight": binarize_weight,
        }
        self.down: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.down = BinaryDownsample(in_channels, out_channels, shortcut, **binary)
        self.unit = FractalUnit(
            columns,
            lambda first: BinaryResidualLayer(out_channels, **binary),
            join=join,
            merged=merged,
            drop_path=drop_path,
        )

    def forward(self, x: Tensor, column: Tensor | None = None) -> Tensor:
        if self.down is not None:
            x = self.down(x)
        return self.unit(x, column)


class ResidualFractalNet(GlobalDropPath, ResidualNet):
    """A :class:`~leanconv.models.residual.ResidualNet` of :class:`ResidualFractalBlock`.

    Args: global_drop_path: in training, this share of the pictures goes through one column of every unit alone, drawn
        for each picture (FractalNet's global drop-path, [open] in SoFAr). 0: none.
    """

    def __init__(self, *args: Any, columns: int = 4, global_drop_path: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, columns=columns, **kwargs)
        self.set_global_drop_path(columns, global_drop_path)


def dense_fractal_unit(
    in_channels: int,
    growth: int,
    *,
    columns: int = 2,
    join: str = "mean",
    merged: bool = True,
    drop_path: float = 0.0,
    inner_shortcut: bool = True,
    **binary: Any,
) -> FractalUnit:
    """The fractal unit of DRF: [N, in_channels, H, W] -> [N, growth, H, W], to be concatenated to its input.

    Its layers are BinaryDenseNet's: those that see the unit's input widen C -> k, each with a batch norm of its own;
    the others are k -> k, with an identity around them where `inner_shortcut` ([inferred], the default to ship).
    For two columns: ``u1 = a(x), u2 = u1 + b(u1), v = c(x)``, result ``(u2 + v) / 2``.

    Args: the first few, those of :class:`~leanconv.nn.fractal.FractalUnit`; binary: BinaryDenseNet's binarisers.
    """

    def layer(first: bool) -> nn.Module:
        width = in_channels if first else growth
        return binary_dense_unit(width, growth, shortcut=inner_shortcut and not first, **binary)

    return FractalUnit(columns, layer, join=join, merged=merged, drop_path=drop_path)


class DenseFractalNet(GlobalDropPath, DenseNet):
    """A :class:`~leanconv.models.dense.DenseNet` of :func:`dense_fractal_unit`. Args: global_drop_path, as above."""

    def __init__(self, *args: Any, columns: int = 2, global_drop_path: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, columns=columns, **kwargs)
        self.set_global_drop_path(columns, global_drop_path)


_PAPER = {"paper_ids": "arXiv:2009.05317", "paper_name": "SoFAr (our reconstruction)"}
_IMAGENET = ("rf_c4d8_resnet37", "rf_c2d2_resnet21", "rf_c3d4_resnet21", "rf_c3d4_resnet37", "rf_c4d8_resnet37_w52")
_CIFAR_FOUR_STAGES = ("rf_c2d2_resnet21_cifar", "rf_c3d4_resnet21_cifar", "rf_c4d8_resnet37_cifar")
_CIFAR_THREE_STAGES = ("rf_c2d2_resnet16_cifar", "rf_c3d4_resnet28_cifar")

_DENSE = {"first_conv": "stem.conv1"}

default_cfgs = generate_default_cfgs(
    {
        **{name: picture_cfg(224, **_PAPER) for name in _IMAGENET},
        **{name: cifar_cfg(pool_size=(4, 4), **_PAPER) for name in _CIFAR_FOUR_STAGES},
        **{name: cifar_cfg(**_PAPER) for name in _CIFAR_THREE_STAGES},
        "drf_c2d2_densenet51": picture_cfg(224, **_PAPER, **_DENSE),
        "drf_c2d2_densenet51_cifar": cifar_cfg(pool_size=(4, 4), **_PAPER, **_DENSE),
    }
)


def _with(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | given


def _rf(name: str, pretrained: bool, columns: int, *, width: int, units: Sequence[int], **kwargs: Any) -> nn.Module:
    """An RF network: `units` fractal units in each stage, `width` channels in the first, then twice as many."""
    channels = tuple(width * 2**i for i in range(len(units)))
    return build(
        name,
        pretrained,
        ResidualFractalBlock,
        units,
        channels,
        net=ResidualFractalNet,
        columns=columns,
        **kwargs,
    )


@register(float_twin="resnet18")
def rf_c4d8_resnet37(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c4d8 ResNet37(41): the published name at the cost of Bi-Real ResNet-18; 63 binary 3x3 convolutions."""
    return _rf("rf_c4d8_resnet37", pretrained, 4, **_with(kwargs, width=41, units=(1, 1, 1, 1)))


@register(float_twin="resnet18")
def rf_c2d2_resnet21(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c2d2, two units a stage, width 64: a member of the family at about Bi-Real ResNet-18's cost [inferred]."""
    return _rf("rf_c2d2_resnet21", pretrained, 2, **_with(kwargs, width=64, units=(2, 2, 2, 2)))


@register(float_twin="resnet18")
def rf_c3d4_resnet21(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c3d4, one unit a stage, width 59: a member of the family at about Bi-Real ResNet-18's cost [inferred]."""
    return _rf("rf_c3d4_resnet21", pretrained, 3, **_with(kwargs, width=59, units=(1, 1, 1, 1)))


@register(float_twin="resnet18")
def rf_c3d4_resnet37(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c3d4, two units a stage, width 42: a member of the family at about Bi-Real ResNet-18's cost [inferred]."""
    return _rf("rf_c3d4_resnet37", pretrained, 3, **_with(kwargs, width=42, units=(2, 2, 2, 2)))


@register(float_twin="resnet34")
def rf_c4d8_resnet37_w52(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c4d8 ResNet37(52): about the cost of Bi-Real ResNet-34 [inferred]."""
    return _rf("rf_c4d8_resnet37_w52", pretrained, 4, **_with(kwargs, width=52, units=(1, 1, 1, 1)))


@register(float_twin="resnet18_cifar")
def rf_c4d8_resnet37_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c4d8 ResNet37(41) for 32x32 pictures: 3x3 stem, no stem pooling."""
    return _rf("rf_c4d8_resnet37_cifar", pretrained, 4, **_with(kwargs, width=41, units=(1, 1, 1, 1), stem="cifar"))


@register(float_twin="resnet18_cifar")
def rf_c2d2_resnet21_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c2d2, two units a stage, width 64, for 32x32 pictures."""
    return _rf("rf_c2d2_resnet21_cifar", pretrained, 2, **_with(kwargs, width=64, units=(2, 2, 2, 2), stem="cifar"))


@register(float_twin="resnet18_cifar")
def rf_c3d4_resnet21_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c3d4, one unit a stage, width 59, for 32x32 pictures."""
    return _rf("rf_c3d4_resnet21_cifar", pretrained, 3, **_with(kwargs, width=59, units=(1, 1, 1, 1), stem="cifar"))


@register(float_twin="resnet20_cifar")
def rf_c2d2_resnet16_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c2d2 at the cost of Bi-Real ResNet-20: three stages of two units, widths 18, 36, 72, for 32x32 pictures. Ours:
    the paper's budgets are those of larger networks."""
    return _rf("rf_c2d2_resnet16_cifar", pretrained, 2, **_with(kwargs, width=18, units=(2, 2, 2), stem="cifar"))


@register(float_twin="resnet20_cifar")
def rf_c3d4_resnet28_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RF-c3d4 at the cost of Bi-Real ResNet-20: three stages of two units, widths 12, 24, 48, for 32x32 pictures.
    Ours."""
    return _rf("rf_c3d4_resnet28_cifar", pretrained, 3, **_with(kwargs, width=12, units=(2, 2, 2), stem="cifar"))


def _drf(name: str, pretrained: bool, *, growth: int, **kwargs: Any) -> nn.Module:
    """A DRF network with 6-6-6-5 units; the stem is as wide as the growth."""
    args = {"layers": (6, 6, 6, 5), "reductions": (2.7, 2.7, 2.2), "initial_channels": growth} | kwargs
    return build_dense(name, pretrained, dense_fractal_unit, net=DenseFractalNet, growth=growth, **args)


@register(float_twin="densenet121")
def drf_c2d2_densenet51(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DRF-c2d2 DenseNet51(53): the published name at the cost of BinaryDenseNet51(32); 23 units of growth 53."""
    return _drf("drf_c2d2_densenet51", pretrained, **_with(kwargs, growth=53, columns=2))


@register(float_twin="resnet18_cifar")
def drf_c2d2_densenet51_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DRF-c2d2 DenseNet51(53) for 32x32 pictures: 3x3 stem, no stem pooling."""
    return _drf("drf_c2d2_densenet51_cifar", pretrained, **_with(kwargs, growth=53, columns=2, stem="cifar"))
