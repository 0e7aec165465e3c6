"""The residual skeleton that our networks share: stem, stages of blocks, pooling, classifier; timm's conventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.models import build_model_with_cfg
from torch import nn

from leanconv.models.staged import StagedNet

Block = Callable[..., nn.Module]  # (in_channels, out_channels, stride, **block_args)


class ResidualNet(StagedNet):
    """Stem -> stages ``layer1``, ``layer2``, ... -> global pooling -> ``fc``. Each stage after the first halves the
    map.

    Args:
        block: makes one block, called as ``block(in_channels, out_channels, stride, **block_args)``.
        layers, channels: blocks and width of each stage.
        stem: ``"imagenet"`` (7x7 stride 2, BN, 3x3 max pool stride 2) or ``"cifar"`` (3x3 stride 1, BN).
        stem_act: the activation after the stem's batch norm, or None.
        num_classes, in_chans, global_pool, drop_rate: as in timm; num_classes 0 returns the pooled features.

    Shapes: [N, in_chans, H, W] -> [N, num_classes].
    """

    def __init__(
        self,
        block: Block,
        layers: Sequence[int],
        channels: Sequence[int],
        stem: str = "imagenet",
        stem_act: Callable[[], nn.Module] | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **block_args: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"unknown stem {stem!r}: expected 'imagenet' or 'cifar'")
        width, reduction = channels[0], 1
        if stem == "imagenet":
            self.append("conv1", nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False))
            reduction = 2
        else:
            self.append("conv1", nn.Conv2d(in_chans, width, 3, padding=1, bias=False))
        self.append("bn1", nn.BatchNorm2d(width))
        self.append("act1", stem_act() if stem_act is not None else nn.Identity(), width, reduction)
        self.append("maxpool", nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity())
        reduction = 4 if stem == "imagenet" else 1
        for i, (depth, out) in enumerate(zip(layers, channels, strict=True), start=1):
            stride = 1 if i == 1 else 2
            reduction *= stride
            blocks = [block(width, out, stride, **block_args)]
            blocks += [block(out, out, 1, **block_args) for _ in range(depth - 1)]
            self.append(f"layer{i}", nn.Sequential(*blocks), out, reduction)
            width = out
        self.close(width, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that sort parameters into stem and blocks, for timm's layer decay."""
        return super().group_matcher(coarse) | {"stem": r"^conv1|bn1"}


def build(
    name: str,
    pretrained: bool,
    block: Block,
    layers: Sequence[int],
    channels: Sequence[int],
    net: type[ResidualNet] = ResidualNet,
    **kwargs: Any,
) -> nn.Module:
    """Create a :class:`ResidualNet` through timm's builder (pretrained_cfg, features_only, num_classes, ...)."""
    return build_model_with_cfg(
        net,
        name,
        pretrained,
        block=block,
        layers=tuple(layers),
        channels=tuple(channels),
        feature_cfg={"out_indices": tuple(range(len(layers) + 1))},
        **kwargs,
    )
