"""The dense skeleton: every unit's channels are concatenated to its input; stages are joined by transitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg
from torch import Tensor, nn

from leanconv.models.staged import StagedNet

Unit = Callable[..., nn.Module]  # (in_channels, growth, **unit_args): a map of in_channels -> growth channels
STEMS = ("imagenet", "cifar", "grouped")


class DenseStep(nn.Module):
    """``concat(x, unit(x))``: the map grows by the unit's channels. `column`: for units that are fractal."""

    takes_column = True

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor, column: Tensor | None = None) -> Tensor:
        return torch.cat([x, self.unit(x) if column is None else self.unit(x, column)], 1)


class Transition(nn.Sequential):
    """BN -> 2x2 max pool -> ReLU -> real-valued 1x1 convolution, as in BinaryDenseNet.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / 2), ceil(W / 2)].
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)


def transition_width(channels: int, reduction: float) -> int:
    """Output channels of a transition: ``floor(channels / reduction)``, rounded to the nearest multiple of 32.

    >>> [transition_width(448, 2.7), transition_width(576, 2.2)]
    [160, 256]
    """
    return max(32, 32 * round(channels // reduction / 32))


class DenseNet(StagedNet):
    """Stem -> stages ``layer1``, ``layer2``, ... of dense steps, a transition before each but the first -> BN, ReLU
    (the end of the last stage) -> global pooling -> ``fc``.

    Args:
        unit: makes one unit, called as ``unit(in_channels, growth, **unit_args)``; its result is concatenated to
            its input.
        layers: units of each stage. growth: channels that each adds.
        initial_channels: width of the stem.
        reductions: of each transition, see :func:`transition_width`; one fewer than stages.
        stem: ``"imagenet"`` (7x7 stride 2, BN, ReLU, 3x3 max pool stride 2), ``"cifar"`` (3x3 alone) or ``"grouped"``
            (MeliusNet's: 3x3 convolutions 32 stride 2, 32 in 4 groups, `initial_channels` in 8, each with BN and ReLU;
            2x2 max pool).
        num_classes, in_chans, global_pool, drop_rate: as in timm; num_classes 0 returns the pooled features.

    Shapes: [N, in_chans, H, W] -> [N, num_classes].
    Raises: ValueError for an unknown stem or a wrong number of reductions.

    >>> from leanconv.nn.fractal import BinaryDenseLayer
    >>> net = DenseNet(BinaryDenseLayer, (2, 2), growth=32, initial_channels=32, reductions=(2,), stem="cifar")
    >>> [info["num_chs"] for info in net.feature_info]
    [32, 96, 128]
    """

    def __init__(
        self,
        unit: Unit,
        layers: Sequence[int],
        growth: int = 64,
        initial_channels: int = 64,
        reductions: Sequence[float] = (2.7, 2.7, 2.2),
        stem: str = "imagenet",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **unit_args: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        if len(reductions) != len(layers) - 1:
            raise ValueError(
                f"{len(layers)} stages need {len(layers) - 1} reductions, one a transition, not {len(reductions)}"
            )
        convs, pool, reduction = make_stem(stem, in_chans, initial_channels)
        self.append("stem", convs, initial_channels, reduction)
        if pool is not None:
            self.append("pool", pool)
            reduction *= 2
        width = initial_channels
        for i, depth in enumerate(layers, start=1):
            blocks: list[nn.Module] = []
            if i > 1:
                narrow = transition_width(width, reductions[i - 2])
                blocks.append(Transition(width, narrow))
                width, reduction = narrow, reduction * 2
            for _ in range(depth):
                blocks.append(DenseStep(unit(width, growth, **unit_args)))
                width += growth
            if i == len(layers):
                blocks.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()))
            self.append(f"layer{i}", nn.Sequential(*blocks), width, reduction)
        self.close(width, global_pool)


def make_stem(stem: str, in_chans: int, channels: int) -> tuple[nn.Sequential, nn.Module | None, int]:
    """The stem's convolutions, the pooling after them, and by how much the convolutions reduce the map."""
    if stem not in STEMS:
        raise ValueError(f"unknown stem {stem!r}: expected one of {', '.join(STEMS)}")
    made = nn.Sequential()
    if stem == "cifar":
        made.add_module("conv1", nn.Conv2d(in_chans, channels, 3, padding=1, bias=False))
        return made, None, 1
    if stem == "imagenet":
        _add_conv(made, 1, nn.Conv2d(in_chans, channels, 7, stride=2, padding=3, bias=False))
        return made, nn.MaxPool2d(3, stride=2, padding=1), 2
    _add_conv(made, 1, nn.Conv2d(in_chans, 32, 3, stride=2, padding=1, bias=False))
    _add_conv(made, 2, nn.Conv2d(32, 32, 3, padding=1, groups=4, bias=False))
    _add_conv(made, 3, nn.Conv2d(32, channels, 3, padding=1, groups=8, bias=False))
    return made, nn.MaxPool2d(2, 2, ceil_mode=True), 2


def _add_conv(made: nn.Sequential, number: int, conv: nn.Conv2d) -> None:
    made.add_module(f"conv{number}", conv)
    made.add_module(f"bn{number}", nn.BatchNorm2d(conv.out_channels))
    made.add_module(f"act{number}", nn.ReLU())


def build_dense(name: str, pretrained: bool, unit: Unit, net: type[DenseNet] = DenseNet, **kwargs: Any) -> nn.Module:
    """Create a :class:`DenseNet` through timm's builder (pretrained_cfg, features_only, num_classes, ...)."""
    out_indices = tuple(range(len(kwargs["layers"]) + 1))
    return build_model_with_cfg(net, name, pretrained, unit=unit, feature_cfg={"out_indices": out_indices}, **kwargs)
