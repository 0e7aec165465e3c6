"""Why a packed network and PyTorch give different classes for a picture: the first sign that came out differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leanconv.compiler.compare import TOLERANCE, written
from leanconv.compiler.native import instrumented, run_native
from leanconv.compiler.verify import recorded


@dataclass
class Difference:
    """The first layer whose signs differ between engine and PyTorch on one picture.

    `distance`: how far PyTorch's value before such a sign is from the threshold, at most. `scale`: the root mean square
    of the values there. Without any different sign `layer` is None: then only the real-valued rest differs.
    """

    layer: str | None = None
    signs: int = 0
    distance: float = 0.0
    scale: float = 0.0

    @property
    def explained(self) -> bool:
        """Whether rounding is the reason: each such value is within ``1e-4 * scale`` of its threshold."""
        return self.distance <= TOLERANCE * self.scale


def explain_differences(model: nn.Module, example: Any, pictures: Sequence[Tensor]) -> list[Difference]:
    """One :class:`Difference` for each of `pictures` (float C,H,W, as the model takes them).

    Layer by layer, the engine's signs are compared with PyTorch's on the same picture; up to the first that differ,
    both have computed with the same signs, so that only rounding can have set them apart.
    Raises: CompileError where the model cannot be compiled.
    """
    from leanconv.compiler import lowered

    exported, fused = lowered(model, example)
    program = fused.program
    found = []
    for picture in pictures:
        x = picture[None]
        theirs = recorded(model, exported, fused, [torch.cat([x, x])])
        ours = _bits(program, x.numpy())
        difference = Difference()
        for op in program.ops:
            for value in written(op):
                source = next((s for s in fused.value_sources.get(value, ()) if s in theirs.kept), None)
                if program.values[value].type != "bits" or source is None:
                    continue
                flips = ours[value] != theirs.map(source)[:1]
                if flips.any():
                    before = theirs.map(str(theirs.nodes[source].args[0]))[:1]
                    scale = float(np.sqrt(np.mean(np.square(before, dtype=np.float64))))
                    difference = Difference(op.name, int(flips.sum()), float(np.abs(before[flips]).max()), scale)
                    break
            if difference.layer is not None:
                break
        found.append(difference)
    return found


def _bits(program: Any, picture: np.ndarray) -> dict[int, np.ndarray]:
    """The engine's signs of every map, as +-1 [1, H, W, C], by value number."""
    from leanconv.engine import reference

    seen = instrumented(program)
    got = run_native(seen, [picture])
    signs = {}
    for op in seen.ops:
        running = None
        for value in written(op):
            if seen.values[value].type == "real":
                running = got[f"v{value}"].transpose(0, 2, 3, 1)
            else:
                step = next(s for s in op.steps if s.kind == "sign" and s.value == value)
                assert running is not None
                signs[value] = reference.written_by(seen, step, running)
    return signs
