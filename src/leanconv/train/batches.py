"""How a data set in memory becomes batches: shuffled, shared among processes, changed at random on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from leanconv.train.augment import augment
from leanconv.train.chance import seed_at
from leanconv.train.data import Split
from leanconv.train.recipe import Recipe, RecipeError

Part = tuple[Tensor, Tensor]  # pictures float [B, C, H, W] with grey levels 0..255, labels int64 [B]; on the device


@dataclass(frozen=True)
class Share:
    """Which parts of a batch a process computes: `accumulate` of ``world * accumulate`` equal ones."""

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def parts(self) -> int:
        return self.world * self.accumulate

    def mine(self) -> range:
        """The numbers of this process's parts.

        >>> list(Share(rank=1, world=2, accumulate=2).mine())
        [2, 3]
        """
        return range(self.rank * self.accumulate, (self.rank + 1) * self.accumulate)

    def part_size(self, batch_size: int) -> int:
        """Pictures a part. Raises RecipeError where the parts would not be equal."""
        if batch_size % self.parts:
            raise RecipeError(
                f"batch_size: {batch_size} pictures cannot be shared equally by {self.world} process(es) "
                f"in {self.accumulate} part(s) each; make it a multiple of {self.parts}"
            )
        return batch_size // self.parts


class Batches(Protocol):
    """The training batches of a run; the same for the same recipe, whenever and wherever they are asked for."""

    steps: int  # steps an epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Part]]:
        """The parts of this process for each step of an epoch (counted from 0), from step `start` on."""
        ...


class MemoryBatches:
    """Batches of a :class:`~leanconv.train.data.Split` that lies on the device. An incomplete last batch is left out.

    Part p of step s of epoch e is the same whatever process computes it.
    """

    def __init__(self, split: Split, recipe: Recipe, share: Share) -> None:
        self.split, self.recipe, self.share = split, recipe, share
        self.size = share.part_size(recipe.batch_size)
        self.steps = len(split) // recipe.batch_size
        if self.steps == 0:
            raise RecipeError(f"batch_size: {recipe.batch_size} is more than the {len(split)} training pictures")

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Part]]:
        seed, device = self.recipe.seed, self.split.labels.device
        order = torch.Generator().manual_seed(seed_at(seed, "order", epoch))
        shuffled = torch.randperm(len(self.split), generator=order).to(device)
        chance = torch.Generator(device)
        for step in range(start, self.steps):
            parts = []
            for part in self.share.mine():
                begin = step * self.recipe.batch_size + part * self.size
                chosen = shuffled[begin : begin + self.size]
                x = self.split.images[chosen].permute(0, 3, 1, 2).float()
                chance.manual_seed(seed_at(seed, "augment", epoch, step, part))
                parts.append((augment(x, self.recipe.augment, chance), self.split.labels[chosen]))
            yield parts
