"""Checks that engines which run the same network give the same answer, before any time is believed."""

from __future__ import annotations

import numpy as np

from leanconv.bench.rivals import BenchError, Rival

TOLERANCE = 1e-3  # of the spread of the logits, between float engines


def check(rivals: list[Rival], outputs: dict[str, np.ndarray], twin: np.ndarray | None) -> dict[str, dict[str, float]]:
    """How far each rival is from its reference; raises BenchError where engines that should agree do not.

    `outputs` maps names to the first output on the same pictures, our engine's as "leanconv"; `twin` is torch's output
    of the float twin. Float rivals must give the twin's values to rounding. The binary network must give the same class
    as our engine on every picture. An int8 or bf16 rival is another network: its distance is reported, not judged.
    """
    report: dict[str, dict[str, float]] = {}
    for rival in rivals:
        reference = outputs["leanconv"] if rival.binary else twin
        got = outputs[rival.name]
        if reference is None or got.shape != reference.shape:
            raise BenchError(
                f"{rival.name} gave an output of shape {got.shape}, expected {getattr(reference, 'shape', None)}"
            )
        difference = float(np.abs(got - reference).max())
        relative = difference / max(float(reference.std()), 1e-12)
        same = float((got.argmax(1) == reference.argmax(1)).mean())
        report[rival.name] = {"same_class": same, "relative_difference": relative, "largest_difference": difference}
        if not np.isfinite(got).all():
            raise BenchError(f"{rival.name} gave values that are not finite")
        if rival.binary and same < 1:
            raise BenchError(
                f"{rival.name} and the engine disagree in class on {1 - same:.0%} of the pictures "
                f"(largest difference {difference:.3g}); no time was measured"
            )
        if not rival.binary and rival.precision == "float32" and relative > TOLERANCE:
            raise BenchError(
                f"{rival.name} does not compute the float twin: it differs by {relative:.2g} of the spread of the "
                f"logits (at most {TOLERANCE:g} expected); no time was measured"
            )
    return report
