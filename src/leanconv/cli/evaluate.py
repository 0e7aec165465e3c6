"""`leanconv eval`: top-1 and top-5 of a checkpoint in torch, or of a packed file in the engine."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.cli.errors import CommandError
from leanconv.extras import need
from leanconv.shipped import packed_path

BATCH = 64


def evaluate(path: Path, spec: str, threads: int | None, json: bool) -> None:
    """Evaluate on the test split of a data set."""
    need("`leanconv eval`", "train", "torch", "timm")
    file = packed_path(path)  # that of a network whose weights ship, or the path itself
    result = _packed(file, spec, threads) if file.suffix == ".lconv" else _checkpoint(file, spec)
    if json:
        print(jsonlib.dumps(result))
    else:
        print(
            f"{path}  top-1 {result['top1']:.4f}  top-5 {result['top5']:.4f}  "
            f"on {result['pictures']} pictures of {spec}, {result['run_by']}"
        )


def _checkpoint(path: Path, spec: str) -> dict[str, Any]:
    from leanconv.networks import from_checkpoint
    from leanconv.train.data import load_data
    from leanconv.train.evaluate import evaluate

    network = from_checkpoint(path)
    data = load_data(spec, network.rules, train=False)
    _check_fit(path, spec, data.test.picture_shape[2], network.rules.input_size, network.classes, data.classes)
    measured = evaluate(network.model, data.test, network.rules)
    return {
        "top1": measured["top1"],
        "top5": measured["top5"],
        "loss": measured["loss"],
        "pictures": len(data.test),
        "run_by": "torch",
    }


def _packed(path: Path, spec: str, threads: int | None) -> dict[str, Any]:
    from leanconv import engine
    from leanconv.cli.run import picture_rules
    from leanconv.train.data import load_data

    model = engine.load(path, threads=threads)
    rules = picture_rules(path, model)
    data = load_data(spec, rules, train=False)
    classes = model.program_info["classes"]
    _check_fit(path, spec, data.test.picture_shape[2], rules.input_size, classes, data.classes)
    top1 = top5 = 0
    for images, labels in data.test.pictures(BATCH):
        result = model(np.ascontiguousarray(images.numpy()))
        logits = next(iter(result.values())) if isinstance(result, dict) else result
        hits = np.argsort(-logits, axis=1, kind="stable")[:, :5] == labels.numpy()[:, None]
        top1, top5 = top1 + int(hits[:, 0].sum()), top5 + int(hits.sum())
    return {
        "top1": top1 / len(data.test),
        "top5": top5 / len(data.test),
        "pictures": len(data.test),
        "run_by": "leanconv engine",
    }


def _check_fit(
    path: Path,
    spec: str,
    channels: int,
    size: tuple[int, int, int],
    classes: list[str] | None,
    data_classes: list[str],
) -> None:
    if channels != size[0]:
        raise CommandError(
            f"{path}: takes pictures of {size[0]} channel(s), those of {spec} have {channels}; "
            "give the data that the network was trained for"
        )
    if classes is not None and len(classes) != len(data_classes):
        raise CommandError(f"{path}: knows {len(classes)} classes, {spec} has {len(data_classes)}")
