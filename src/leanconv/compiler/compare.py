"""What counts as equal when a Program is verified; :mod:`leanconv.compiler.verify` states the rules."""

from __future__ import annotations

import numpy as np

from leanconv.compiler.errors import CompileError
from leanconv.program import WRITING_STEPS, Op

TOLERANCE = 1e-4


def fail(op: Op, reason: str) -> CompileError:
    return CompileError(
        f"verification failed at layer {op.name} ({op.kind}): {reason}; this is a fault of the compiler or the engine, "
        "please report it with the model"
    )


def written(op: Op) -> list[int]:
    """The values that an operator writes, in order."""
    own = [] if op.output is None else [op.output]
    return own + [s.value for s in op.steps if s.kind in WRITING_STEPS and s.value is not None]


def rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def compare_real(op: Op, ours: np.ndarray, theirs: np.ndarray, scale: float, who: str) -> None:
    """Raises CompileError unless ``|ours - theirs| <= 1e-4 * (scale + |theirs|)`` everywhere."""
    excess = np.abs(ours - theirs) - TOLERANCE * (scale + np.abs(theirs))
    if not (excess <= 0).all():
        worst = float(np.abs(ours - theirs).max())
        raise fail(op, f"values differ from those of {who} by up to {worst:.1e} (root mean square {scale:.1e})")
