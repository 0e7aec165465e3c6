"""The binarisers of networks whose straight-through gradients are cut at another place than 1."""

from __future__ import annotations

from typing import Any

from leanconv.nn import STESign, create_weight_binarizer


def straight_through(binarize_input: Any, binarize_weight: Any, clip: float) -> dict[str, Any]:
    """Arguments of a binary layer: names as in :mod:`leanconv.nn`, gradients of weights and of ``ste_sign`` cut at
    |x| > clip. Modules pass as they are."""
    if isinstance(binarize_weight, str):
        binarize_weight = create_weight_binarizer(binarize_weight)
        binarize_weight.clip = float(clip)
    if binarize_input == "ste_sign":
        binarize_input = STESign(clip)
    return {"binarize_input": binarize_input, "binarize_weight": binarize_weight}
