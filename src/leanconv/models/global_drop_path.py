"""Global drop-path: in training, some pictures go through one column of every fractal unit of a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timm.models import checkpoint_seq
from torch import Tensor, nn

from leanconv.models.staged import StagedNet
from leanconv.nn.fractal import draw_columns

torch.fx.wrap("draw_columns")  # for as many pictures as there are, a number that symbolic tracing lacks


class GlobalDropPath(StagedNet):
    """A :class:`~leanconv.models.staged.StagedNet` whose stages hold blocks with fractal units; first in the bases.

    Such a block has the attribute ``takes_column`` and is called as ``block(x, column)``, see
    :class:`~leanconv.nn.fractal.FractalUnit`.
    """

    columns: int = 1
    global_drop_path: float = 0.0

    def set_global_drop_path(self, columns: int, share: float) -> None:
        """In training, `share` of the pictures go through one of `columns` columns, drawn for each picture.

        Raises: ValueError for a share that is none.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"global_drop_path must be in [0, 1], got {share}")
        self.columns, self.global_drop_path = columns, share

    def forward_features(self, x: Tensor) -> Tensor:
        column = (
            draw_columns(x, self.columns, self.global_drop_path) if self.training and self.global_drop_path else None
        )
        for name in self.chain:
            x = self._link(name, x) if column is None else self._link_by_column(name, x, column)
        return x

    def _link_by_column(self, name: str, x: Tensor, column: Tensor) -> Tensor:
        link = self.get_submodule(name)
        if not name.startswith("layer"):
            return link(x)
        calls: list[Callable[[Tensor], Tensor]] = [_call(block, column) for block in link.children()]
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(calls, x)
        for call in calls:
            x = call(x)
        return x


def _call(block: nn.Module, column: Tensor) -> Callable[[Tensor], Tensor]:
    return partial(block, column=column) if getattr(block, "takes_column", False) else block
