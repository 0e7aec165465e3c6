"""Makes ``import torchvision`` (hence ``import timm``) work beside a CPU-only PyTorch.

The package index's torchvision links CUDA libraries. Beside a CPU-only torch its compiled operators cannot be loaded,
and importing it dies with "operator torchvision::nms does not exist". :func:`ensure_importable` acts on exactly that
failure: it declares the two operators that torchvision's Python code insists on, gives `nms` a CPU implementation, and
warns once with the real cure.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

_library: torch.library.Library | None = None  # lives as long as the process


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: indices of the boxes to keep, best score first.

    Args: dets: [N, 4] as x1, y1, x2, y2. scores: [N]. iou_threshold: a box that overlaps a kept one by more is dropped.

    >>> nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]]), torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
    [1, 2]
    """
    order = torch.argsort(scores, descending=True, stable=True)
    areas = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    keep = []
    while order.numel():
        best, rest = order[0], order[1:]
        keep.append(best)
        corner = torch.maximum(dets[best, :2], dets[rest, :2])
        extent = (torch.minimum(dets[best, 2:], dets[rest, 2:]) - corner).clamp(min=0)
        overlap = extent[:, 0] * extent[:, 1]
        order = rest[overlap / (areas[best] + areas[rest] - overlap) <= iou_threshold]
    return torch.stack(keep) if keep else order


def _operators_load(package: Path) -> bool:
    files = [*package.glob("_C*.so"), *package.glob("_C*.pyd"), *package.glob("_C*.dylib")]
    if not files:
        return False
    try:
        torch.ops.load_library(files[0])
    except OSError:
        return False
    return True


def ensure_importable() -> None:
    """Prepare for ``import torchvision``; does nothing where torchvision is absent, already imported or in order."""
    global _library
    if _library is not None or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    if _operators_load(Path(spec.submodule_search_locations[0])):
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", nms, "CPU")
    import torchvision.ops.boxes

    torchvision.ops.boxes._assert_has_ops = lambda: None  # its only compiled operator is nms, which now exists
    warnings.warn(
        "torchvision's compiled operators do not fit this PyTorch and are left out (its transforms work); "
        "to have them, install matching builds of torch and torchvision from one index",
        stacklevel=2,
    )
