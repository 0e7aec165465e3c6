"""Fractal units over shortcut-based binary layers (SoFAr): columns of layers of different lengths, joined by means.

The expansion rule is FractalNet's (Larsson et al., arXiv 1605.07648, [recall]): ``f_1(z) = layer(z)``,
``f_{c+1}(z) = join(f_c(f_c(z)), layer(z))``. Joins that coincide are merged into one with equal weights, as in
FractalNet's published layout. SoFAr (Zhu et al., arXiv 2009.05317) puts shortcut-based binary layers into it. Only its
abstract could be read: which layers, which joins and which shortcuts is our **reconstruction** ([inferred] from the
published names, depths and compute budgets), not the paper's text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.nn.binary_conv import BinaryConv2d

Layer = Callable[[bool], nn.Module]  # called with True for a layer that sees the unit's input

torch.fx.wrap("join_weights")  # drawn for as many pictures as there are, a number that symbolic tracing lacks


class BinaryResidualLayer(nn.Module):
    """``x + bn(conv(sign(x)))``: one binary 3x3 convolution with a shortcut of its own, as in Bi-Real Net (arXiv
    1808.00278).

    Args: binary: arguments of :class:`~leanconv.nn.BinaryConv2d` (binarisers, pad_value), by name.
    Shapes: [N, channels, H, W] -> same.
    """

    def __init__(self, channels: int, **binary: Any) -> None:
        super().__init__()
        self.conv = BinaryConv2d(channels, channels, 3, padding=1, **binary)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + x


class BinaryDenseLayer(nn.Module):
    """``conv(sign(bn(x)))``: BinaryDenseNet's layer (Bethge et al., arXiv 1906.08637, [recall]) without its
    concatenation; with `shortcut` the input is added (needs equal widths).

    Shapes: [N, in_channels, H, W] -> [N, out_channels, H, W].
    """

    def __init__(self, in_channels: int, out_channels: int, shortcut: bool = False, **binary: Any) -> None:
        super().__init__()
        if shortcut and in_channels != out_channels:
            raise ValueError(f"a shortcut needs equal widths, not {in_channels} and {out_channels}")
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = BinaryConv2d(in_channels, out_channels, 3, padding=1, **binary)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.bn(x))
        return y + x if self.shortcut else y


def _ends(columns: int) -> list[tuple[int, ...]]:
    """For each position 1..2^(columns-1), the columns (1 is the shortest) that have a layer which ends there."""
    depth = 2 ** (columns - 1)
    return [
        tuple(i for i in range(1, columns + 1) if position % (depth >> (i - 1)) == 0)
        for position in range(1, depth + 1)
    ]


class FractalUnit(nn.Module):
    """A fractal of `columns` columns: ``2^columns - 1`` layers, ``2^(columns - 1)`` of them on the longest path.

    Column i (1 the shortest) has ``2^(i-1)`` layers of equal span. With the default merged joins,

    ``x_p = join(layer[i, p](x_{p - span_i}) for every column i that has a layer ending at position p)``,

    where x_0 is the input and ``x_depth`` the result. With ``merged=False`` the joins are the nested pairs of the rule.

    Args:
        columns: c >= 1; c = 1 is the layer alone.
        layer: makes a layer; called with True for one that sees the unit's input, else False.
        join: ``"mean"`` (default) or ``"sum"``.
        merged: merge joins that coincide (FractalNet's layout) or nest them in pairs.
        drop_path: in training, each input of a join is left out with this probability, for each picture on its own; at
            least one stays, and a mean is over those that stay. ([open] in SoFAr; FractalNet's local drop-path.)

    Shapes: those of the layers. Raises: ValueError for impossible arguments.

    >>> unit = FractalUnit(3, lambda first: BinaryResidualLayer(8))
    >>> unit(torch.randn(2, 8, 5, 5)).shape, len(unit.layers), unit.depth
    (torch.Size([2, 8, 5, 5]), 7, 4)
    """

    def __init__(
        self, columns: int, layer: Layer, *, join: str = "mean", merged: bool = True, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        if columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}")
        if join not in ("mean", "sum"):
            raise ValueError(f"join must be 'mean' or 'sum', got {join!r}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {drop_path}")
        self.columns, self.depth = columns, 2 ** (columns - 1)
        self.join, self.merged, self.drop_path = join, merged, drop_path
        self.ends = _ends(columns)
        self.layers = nn.ModuleDict()
        for position, here in enumerate(self.ends, start=1):
            for column in here:
                self.layers[f"c{column}p{position}"] = layer(position == self.span(column))

    def span(self, column: int) -> int:
        """How many positions a layer of a column covers."""
        return self.depth >> (column - 1)

    def forward(self, x: Tensor, column: Tensor | None = None) -> Tensor:
        """column: [N], in training the one column (1..c) that each picture goes through, 0 for all of them: global
        drop-path."""
        return self._merged(x, column) if self.merged else self._nested(x, self.columns, 0, column)

    def _merged(self, x: Tensor, column: Tensor | None) -> Tensor:
        joined = [x]
        for position, here in enumerate(self.ends, start=1):
            outputs = [self.layers[f"c{i}p{position}"](joined[position - self.span(i)]) for i in here]
            joined.append(self._join(outputs, here, column))
        return joined[-1]

    def _nested(self, x: Tensor, columns: int, start: int, column: Tensor | None) -> Tensor:
        """f_columns, beginning at position `start`; its single layer is that of column ``c + 1 - columns``."""
        own = self.columns + 1 - columns
        y = self.layers[f"c{own}p{start + self.span(own)}"](x)
        if columns == 1:
            return y
        half = self._nested(x, columns - 1, start, column)
        half = self._nested(half, columns - 1, start + self.span(own) // 2, column)
        keep = None if column is None else torch.where(column > own, own + 1, column)
        return self._join([y, half], (own, own + 1), keep)

    def _join(self, outputs: list[Tensor], columns: tuple[int, ...], column: Tensor | None) -> Tensor:
        if len(outputs) == 1:
            return outputs[0]
        if not self.training or (column is None and not self.drop_path):
            total = outputs[0]
            for y in outputs[1:]:
                total = total + y
            return total / len(outputs) if self.join == "mean" else total
        weights = join_weights(outputs[0], columns, column, self.drop_path, self.join)
        return torch.stack([weights[i].view(-1, 1, 1, 1) * y for i, y in enumerate(outputs)]).sum(0)

    def extra_repr(self) -> str:
        return f"columns={self.columns}, depth={self.depth}, join={self.join}, merged={self.merged}"


def join_weights(like: Tensor, columns: tuple[int, ...], column: Tensor | None, drop_path: float, join: str) -> Tensor:
    """[inputs, N]: what each input of a join is multiplied by in training; `columns` are those that end there."""
    n, count = like.shape[0], len(columns)
    kept = torch.ones(count, n, dtype=torch.bool, device=like.device)
    if drop_path:
        kept = torch.rand(count, n, device=like.device) >= drop_path
        spare = torch.randint(count, (n,), device=like.device)
        kept = kept | (torch.arange(count, device=like.device)[:, None] == spare) & ~kept.any(0)
    if column is not None:  # at a join that its column doesn't reach, a picture's inputs do not matter
        alone = torch.tensor(columns, device=like.device)[:, None] == column
        kept = torch.where(alone.any(0), alone, kept)
    weights = kept.to(like.dtype)
    return weights / weights.sum(0) if join == "mean" else weights


def draw_columns(x: Tensor, columns: int, share: float) -> Tensor:
    """[N]: the one column (1..columns) that each picture goes through, 0 (all of them) for all but `share` of them."""
    n = x.shape[0]
    alone = torch.rand(n, device=x.device) < share
    return torch.where(alone, torch.randint(1, columns + 1, (n,), device=x.device), 0)
