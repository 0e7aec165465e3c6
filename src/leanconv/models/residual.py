"""The residual skeleton that our networks share: stem, stages of blocks, pooling, classifier; timm's conventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F

Block = Callable[..., nn.Module]  # (in_channels, out_channels, stride, **block_args)


class ResidualNet(nn.Module):
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
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"unknown stem {stem!r}: expected 'imagenet' or 'cifar'")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        width, reduction = channels[0], 1
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
            reduction = 2
        else:
            self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = stem_act() if stem_act is not None else nn.Identity()
        self.feature_info = [{"num_chs": width, "reduction": reduction, "module": "act1"}]
        self.maxpool = nn.Identity()
        if stem == "imagenet":
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)  # type: ignore[assignment]
            reduction = 4

        self.stages: list[str] = []
        for i, (depth, out) in enumerate(zip(layers, channels, strict=True), start=1):
            stride = 1 if i == 1 else 2
            reduction *= stride
            blocks = [block(width, out, stride, **block_args)]
            blocks += [block(out, out, 1, **block_args) for _ in range(depth - 1)]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            self.stages.append(f"layer{i}")
            self.feature_info.append({"num_chs": out, "reduction": reduction, "module": f"layer{i}"})
            width = out

        self.num_features = self.head_hidden_size = width
        self.global_pool, self.fc = create_classifier(width, num_classes, pool_type=global_pool)
        self.head_hidden_size = width * self.global_pool.feat_mult()
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that sort parameters into stem and blocks, for timm's layer decay."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for `num_classes` (0: none); the pooling stays unless named."""
        self.num_classes = num_classes
        weight = self.conv1.weight
        pool, fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=global_pool if global_pool is not None else self.global_pool.pool_type,
            device=weight.device,
            dtype=weight.dtype,
        )
        self.global_pool, self.fc = pool.train(self.training), fc.train(self.training)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def _stem(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv1(x)))

    def _stage(self, name: str, x: Tensor) -> Tensor:
        stage = self.get_submodule(name)
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, in_chans, H, W] -> the last stage's map [N, num_features, h, w]."""
        x = self.maxpool(self._stem(x))
        for name in self.stages:
            x = self._stage(name, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last stage's map -> logits, or the pooled features with `pre_logits`."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of stem (index 0) and stages, timm's interface: the last `indices` of them, those listed, or all."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        count = len(self.stages) + 1
        if indices is None or isinstance(indices, int):
            take = set(range(count)[-(indices or count) :])
        else:
            take = {range(count)[i] for i in indices}
        x = self._stem(x)
        maps = [x] if 0 in take else []
        x = self.maxpool(x)
        for i, name in enumerate(self.stages, start=1):
            if stop_early and i > max(take):
                break
            x = self._stage(name, x)
            if i in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)


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
