"""BinaryDenseNet (Bethge et al., arXiv 1906.08637): dense connections, one binary 3x3 convolution a layer.

Layer: BN -> sign -> binary 3x3 -> concatenate with the input; no bottleneck and no scaling. Stem, transitions and
classifier are real-valued. Both signs have straight-through gradients, cut at 1.3. Block lists, reductions and clip as
in larq/zoo's `literature/densenet.py`, whose parameter counts these networks match; the paper itself was not read.
``binary_densenet51`` is 28 with growth halved and layers doubled, the name that SoFAr (arXiv 2009.05317) compares with;
its lists are [inferred]. For 32x32 pictures the stem is a 3x3 convolution alone, as in larq/zoo for small pictures.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs
from torch import nn

from leanconv.models._registry import cifar_cfg, picture_cfg, register
from leanconv.models._straight_through import straight_through
from leanconv.models.dense import build_dense
from leanconv.nn.fractal import BinaryDenseLayer


def binary_dense_unit(
    in_channels: int,
    growth: int,
    *,
    binarize_input: Any = "ste_sign",
    binarize_weight: Any = "sign",
    clip: float = 1.3,
    pad_value: int = 0,
    shortcut: bool = False,
) -> BinaryDenseLayer:
    """A :class:`~leanconv.nn.fractal.BinaryDenseLayer` with BinaryDenseNet's binarisers: [N, in_channels, H, W] ->
    [N, growth, H, W].

    Args: clip: where straight-through gradients end; shortcut: add the input; the rest as in
        :class:`leanconv.nn.BinaryConv2d`.
    """
    binary = straight_through(binarize_input, binarize_weight, clip)
    return BinaryDenseLayer(in_channels, growth, shortcut, pad_value=pad_value, **binary)


_PAPER = {"paper_ids": "arXiv:1906.08637", "paper_name": "BinaryDenseNet", "first_conv": "stem.conv1"}

default_cfgs = generate_default_cfgs(
    {
        **{f"binary_densenet{depth}": picture_cfg(224, **_PAPER) for depth in (28, 37, 45, 51)},
        **{f"binary_densenet{depth}_cifar": cifar_cfg(pool_size=(4, 4), **_PAPER) for depth in (28, 51)},
    }
)

_28 = {"layers": (6, 6, 6, 5), "growth": 64, "reductions": (2.7, 2.7, 2.2)}
_51 = {"layers": (12, 12, 12, 10), "growth": 32, "reductions": (2.7, 2.7, 2.2)}


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_dense(name, pretrained, binary_dense_unit, **kwargs)


@register(float_twin="densenet121")
def binary_densenet28(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BinaryDenseNet28(64): 23 binary 3x3 convolutions, growth 64, ImageNet stem."""
    return _build("binary_densenet28", pretrained, **_28 | kwargs)


@register(float_twin="densenet121")
def binary_densenet37(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BinaryDenseNet37(64): 32 binary 3x3 convolutions, growth 64, ImageNet stem."""
    args = {"layers": (6, 8, 12, 6), "reductions": (3.3, 3.3, 4.0)} | kwargs
    return _build("binary_densenet37", pretrained, **args)


@register(float_twin="densenet121")
def binary_densenet45(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BinaryDenseNet45(64): 40 binary 3x3 convolutions, growth 64, ImageNet stem."""
    args = {"layers": (6, 12, 14, 8), "reductions": (2.7, 3.3, 4.0)} | kwargs
    return _build("binary_densenet45", pretrained, **args)


@register(float_twin="densenet121")
def binary_densenet51(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BinaryDenseNet51(32): 46 binary 3x3 convolutions, growth 32, ImageNet stem; lists [inferred]."""
    return _build("binary_densenet51", pretrained, **_51 | kwargs)


@register(float_twin="resnet18_cifar")
def binary_densenet28_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BinaryDenseNet28(64) for 32x32 pictures: 3x3 stem, no stem pooling."""
    return _build("binary_densenet28_cifar", pretrained, **_28 | {"stem": "cifar"} | kwargs)


@register(float_twin="resnet18_cifar")
def binary_densenet51_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BinaryDenseNet51(32) for 32x32 pictures: 3x3 stem, no stem pooling."""
    return _build("binary_densenet51_cifar", pretrained, **_51 | {"stem": "cifar"} | kwargs)
