"""What timm expects of a classifier, for networks that are a chain of stages: heads, features, checkpointing."""

from __future__ import annotations

import torch
from timm.layers import create_classifier
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F


class StagedNet(nn.Module):
    """A chain of modules, then global pooling and ``fc``: subclasses append the chain and call :meth:`close`.

    Args:
        num_classes, in_chans, drop_rate: as in timm; num_classes 0 returns the pooled features.

    Shapes: [N, in_chans, H, W] -> [N, num_classes].
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.chain: list[str] = []
        self.feature_info: list[dict[str, object]] = []

    def append(self, name: str, module: nn.Module, channels: int | None = None, reduction: int = 1) -> None:
        """The next link of the chain; with `channels`, its map is one of the network's features."""
        self.add_module(name, module)
        self.chain.append(name)
        if channels is not None:
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": name})

    def close(self, width: int, global_pool: str = "avg") -> None:
        """The head, on `width` channels, and the initial weights."""
        self.num_features = width
        self.global_pool, self.fc = create_classifier(width, self.num_classes, pool_type=global_pool)
        self.head_hidden_size = width * self.global_pool.feat_mult()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that sort parameters into stem and blocks, for timm's layer decay."""
        return {"stem": r"^stem", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the stages in the backward pass."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for `num_classes` (0: none); the pooling stays unless named."""
        self.num_classes = num_classes
        like = next(self.parameters())
        pool, fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=global_pool if global_pool is not None else self.global_pool.pool_type,
            device=like.device,
            dtype=like.dtype,
        )
        self.global_pool, self.fc = pool.train(self.training), fc.train(self.training)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def _link(self, name: str, x: Tensor) -> Tensor:
        link = self.get_submodule(name)
        if self.grad_checkpointing and self.training and name.startswith("layer") and not torch.jit.is_scripting():
            return checkpoint_seq(link, x)
        return link(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, in_chans, H, W] -> the last stage's map [N, num_features, h, w]."""
        for name in self.chain:
            x = self._link(name, x)
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
        """Maps of the links in `feature_info`, timm's interface: the last `indices` of them, those listed, or all."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        names = [str(info["module"]) for info in self.feature_info]
        if indices is None or isinstance(indices, int):
            take = set(names[-(indices or len(names)) :])
        else:
            take = {names[i] for i in indices}
        maps: list[Tensor] = []
        for name in self.chain:
            if stop_early and len(maps) == len(take):
                break
            x = self._link(name, x)
            if name in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)
