"""`leanconv run`: classes of pictures, from a packed file, without torch."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leanconv import engine
from leanconv.cli.errors import CommandError
from leanconv.preprocess import PictureError, Preprocessing, find_pictures, read_picture
from leanconv.shipped import packed_path

BATCH = 16


def run(path: Path, pictures: list[Path], top: int, json: bool, threads: int | None) -> None:
    """Print the `top` classes of each picture. Unreadable ones are reported on stderr; then the exit code is 1.

    `path` is a packed file, or the name of a network whose trained weights ship.
    """
    model = engine.load(packed_path(path), threads=threads)
    rules = picture_rules(path, model)
    classes = model.program_info["classes"]
    found = find_pictures(pictures)
    rows: list[dict[str, Any]] = []
    bad = 0
    for name, answer in _answers(model, found, rules):
        if isinstance(answer, PictureError):
            bad += 1
            print(f"error: {answer}", file=sys.stderr)
            rows.append({"path": str(name), "error": str(answer)})
            continue
        row = {"path": str(name)} | top_classes(path, answer, classes, top)
        rows.append(row)
        if not json:
            print(_line(row), flush=True)
    if json:
        print(jsonlib.dumps(rows, indent=1, ensure_ascii=False))
    if bad:
        raise SystemExit(1)


def picture_rules(path: Path, model: engine.Model) -> Preprocessing:
    """How a network wants its pictures. Raises CommandError for one that does not take pictures, PictureError."""
    if len(model.inputs) != 1 or model.inputs[0].dims != 4:
        raise CommandError(
            f"{path}: `leanconv run` feeds one picture at a time; this network has inputs "
            f"{', '.join(f'{i.name} ({i.dims}-d)' for i in model.inputs)}: call leanconv.engine from Python"
        )
    rules = Preprocessing.from_dict(model.program_info["preprocessing"])
    if rules.input_size[0] != model.inputs[0].channels:
        raise CommandError(
            f"{path}: prepared pictures have {rules.input_size[0]} channels, the network takes "
            f"{model.inputs[0].channels}; compile it with matching preprocessing"
        )
    return rules


def _answers(
    model: engine.Model, paths: list[Path], rules: Preprocessing
) -> Iterator[tuple[Path, dict[str, np.ndarray] | PictureError]]:
    """Every path with what the network gives for it, by output name, or with why it could not be read."""
    for start in range(0, len(paths), BATCH):
        group: list[tuple[Path, np.ndarray | PictureError]] = []
        for path in paths[start : start + BATCH]:
            try:
                group.append((path, read_picture(path, rules)))
            except PictureError as error:
                group.append((path, error))
        good = [picture for _, picture in group if not isinstance(picture, PictureError)]
        outputs: dict[str, np.ndarray] = {}
        if good:
            result = model(np.stack(good))
            outputs = result if isinstance(result, dict) else {model.outputs[0].name: result}
        row = 0
        for path, picture in group:
            if isinstance(picture, PictureError):
                yield path, picture
            else:
                yield path, {name: values[row] for name, values in outputs.items()}
                row += 1


def top_classes(path: Path, outputs: dict[str, np.ndarray], classes: list[str] | None, top: int) -> dict[str, Any]:
    """`{"top": [...]}` for one output, `{"outputs": {name: [...]}}` for several. Raises CommandError for maps."""
    ranked = {}
    for name, logits in outputs.items():
        if logits.ndim != 1:
            raise CommandError(
                f"{path}: output {name} is a map of shape {list(logits.shape)}, not class scores; "
                "call leanconv.engine from Python to use it"
            )
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = shifted / shifted.sum()
        named = classes if classes and len(classes) == len(logits) else None
        ranked[name] = [
            {
                "class": named[i] if named else str(i),
                "index": int(i),
                "probability": float(probabilities[i]),
            }
            for i in np.argsort(-logits, kind="stable")[:top]
        ]
    if len(ranked) == 1:
        return {"top": next(iter(ranked.values()))}
    return {"outputs": ranked}


def _line(row: dict[str, Any]) -> str:
    def words(ranked: list[dict[str, Any]]) -> str:
        return "  ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in ranked)

    if "top" in row:
        return f"{row['path']}  {words(row['top'])}"
    return "\n".join([row["path"], *(f"  {name}  {words(ranked)}" for name, ranked in row["outputs"].items())])
