"""FractalNet (Larsson et al., arXiv 1605.07648), real-valued: blocks of one fractal unit and a 2x2 max pool, without
shortcuts.

[recall] throughout: columns, widths, drop-path and dropout are from memory of the paper. The counts that we remember
differ: 38.6 M parameters for the CIFAR network with 20 layers, where this one has 33.7 M.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from leanconv.models._registry import cifar_cfg, picture_cfg, register
from leanconv.models.global_drop_path import GlobalDropPath
from leanconv.nn.fractal import FractalUnit


class ConvLayer(nn.Sequential):
    """conv 3x3 -> dropout -> BN -> ReLU. Shapes: [N, in_channels, H, W] -> [N, out_channels, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.drop = nn.Dropout(dropout)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU()


class FractalBlock(nn.Module):
    """A fractal unit of :class:`ConvLayer`, with a 2x2 max pool (ceil) before it where `pool_first`, after it where
    `pool_last`."""

    takes_column = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        columns: int,
        *,
        pool_first: bool = False,
        pool_last: bool = False,
        dropout: float = 0.0,
        **unit_args: Any,
    ) -> None:
        super().__init__()
        self.pool_first = nn.MaxPool2d(2, 2, ceil_mode=True) if pool_first else nn.Identity()
        self.unit = FractalUnit(
            columns, lambda first: ConvLayer(in_channels if first else out_channels, out_channels, dropout), **unit_args
        )
        self.pool_last = nn.MaxPool2d(2, 2, ceil_mode=True) if pool_last else nn.Identity()

    def forward(self, x: Tensor, column: Tensor | None = None) -> Tensor:
        return self.pool_last(self.unit(self.pool_first(x), column))


class FractalNet(GlobalDropPath):
    """[stem ->] blocks ``layer1``, ``layer2``, ... -> global pooling -> ``fc``.

    Args:
        columns: of each unit; the longest path has ``2^(columns - 1)`` convolutions a block.
        channels: width of each block.
        stem: ``"imagenet"`` (ResNet's: 7x7 stride 2, BN, ReLU, 3x3 max pool stride 2; the blocks after the first begin
            with a 2x2 max pool) or ``"none"`` (the units see the picture; each block ends with a 2x2 max pool).
        dropout: for each block, one number a block or one for all; the paper's for CIFAR: 0, 0.1, 0.2, 0.3, 0.4.
        drop_path: local drop-path of the joins; the paper's: 0.15.
        global_drop_path: in training, this share of the pictures goes through one column of every unit alone, chosen
            at random for each picture; the paper's: 0.5 (of the batches).
        join, merged: those of :class:`~leanconv.nn.fractal.FractalUnit`.
        num_classes, in_chans, global_pool, drop_rate: as in timm; num_classes 0 returns the pooled features.

    Shapes: [N, in_chans, H, W] -> [N, num_classes].
    Raises: ValueError for an unknown stem, a wrong number of dropouts or a share that is none.
    """

    def __init__(
        self,
        columns: int,
        channels: Sequence[int],
        stem: str = "imagenet",
        dropout: float | Sequence[float] = 0.0,
        drop_path: float = 0.0,
        global_drop_path: float = 0.0,
        join: str = "mean",
        merged: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        if stem not in ("imagenet", "none"):
            raise ValueError(f"unknown stem {stem!r}: expected 'imagenet' or 'none'")
        rates = [float(dropout)] * len(channels) if isinstance(dropout, (int, float)) else list(dropout)
        if len(rates) != len(channels):
            raise ValueError(f"{len(channels)} blocks need {len(channels)} dropouts, one a block, not {len(rates)}")
        self.set_global_drop_path(columns, global_drop_path)
        width, reduction, stemless = in_chans, 1, stem == "none"
        if not stemless:
            width, reduction = 64, 4
            convs = nn.Sequential()
            convs.add_module("conv1", nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False))
            convs.add_module("bn1", nn.BatchNorm2d(width))
            convs.add_module("act1", nn.ReLU())
            self.append("stem", convs, width, 2)
            self.append("pool", nn.MaxPool2d(3, stride=2, padding=1))
        for i, (out, rate) in enumerate(zip(channels, rates, strict=True), start=1):
            first = not stemless and i > 1
            block = FractalBlock(
                width,
                out,
                columns,
                pool_first=first,
                pool_last=stemless,
                dropout=rate,
                join=join,
                merged=merged,
                drop_path=drop_path,
            )
            reduction *= 2 if first or stemless else 1
            self.append(f"layer{i}", nn.Sequential(block), out, reduction)
            width = out
        self.close(width, global_pool)


_PAPER = {"paper_ids": "arXiv:1605.07648", "paper_name": "FractalNet"}

default_cfgs = generate_default_cfgs(
    {
        "fractalnet": picture_cfg(224, first_conv="stem.conv1", **_PAPER),
        "fractalnet_cifar": cifar_cfg(pool_size=(1, 1), first_conv="layer1.0.unit.layers.c3p1.conv", **_PAPER),
    }
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    features = len(kwargs["channels"]) + (kwargs.get("stem", "imagenet") == "imagenet")
    feature_cfg = {"out_indices": tuple(range(features))}
    return build_model_with_cfg(FractalNet, name, pretrained, feature_cfg=feature_cfg, **kwargs)


@register()
def fractalnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FractalNet with 34 layers for ImageNet: four blocks of four columns, widths 128 to 1024, ResNet's stem."""
    args = {"columns": 4, "channels": (128, 256, 512, 1024)} | kwargs
    return _build("fractalnet", pretrained, **args)


@register()
def fractalnet_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FractalNet with 20 layers (and the classifier) for 32x32 pictures: five blocks of three columns, widths 64 to
    512, no stem."""
    args = {"columns": 3, "channels": (64, 128, 256, 512, 512), "stem": "none"} | kwargs
    return _build("fractalnet_cifar", pretrained, **args)
