"""Pictures that `leanconv compile --real-layers int8 --calibrate ...` measures ranges on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leanconv.cli.errors import CommandError
from leanconv.preprocess import Preprocessing, find_pictures, read_pictures

if TYPE_CHECKING:
    from leanconv.program import Program
    from leanconv.train.data import Pictures

PICTURES = 64  # at most
BATCH = 64
KINDS = ("npz:", "imagefolder:", "webdataset:", "torchvision:")


@dataclass
class Calibration:
    """uint8 pictures N,H,W,C; of labelled data, the test part that shows what int8 costs."""

    pictures: np.ndarray
    test: Pictures | None = None


def read_calibration(given: list[str], rules: Preprocessing) -> Calibration:
    """At most 64 pictures, evenly spread: of files and folders, or of the training part of one data SPEC or .npz file.

    Raises CommandError, PictureError, DataError.
    """
    if len(given) == 1 and (is_spec(given[0]) or given[0].endswith(".npz")):
        return _labelled(given[0] if is_spec(given[0]) else f"npz:{given[0]}", rules)
    paths = find_pictures(given)
    return Calibration(read_pictures([paths[i] for i in spread(len(paths))], rules))


def spread(count: int) -> list[int]:
    """At most 64 numbers below `count`, evenly spread.

    >>> spread(3), spread(640)[:3], len(spread(640))
    ([0, 1, 2], [0, 10, 20], 64)
    """
    return [i * count // min(count, PICTURES) for i in range(min(count, PICTURES))]


def _labelled(spec: str, rules: Preprocessing) -> Calibration:
    import torch

    from leanconv.train.data import load_data

    data = load_data(spec, rules)
    source = data.test if data.train is None else data.train
    if source.picture_shape[2] != rules.input_size[0]:
        raise CommandError(
            f"--calibrate {spec}: pictures of {source.picture_shape[2]} channel(s), the network takes "
            f"{rules.input_size[0]}; give the data that it was trained for"
        )
    chosen = source.select(torch.tensor(spread(len(source))))
    images = torch.cat([images for images, _ in chosen.pictures(BATCH)])
    return Calibration(images.numpy(), data.test)


def accuracy(program: Program, test: Pictures) -> float:
    """Top-1 of a Program in the engine."""
    from leanconv.engine import Model

    model, hits = Model(program.to_bytes()), 0
    for images, labels in test.pictures(BATCH):
        result = model(np.ascontiguousarray(images.numpy()))
        logits = next(iter(result.values())) if isinstance(result, dict) else result
        hits += int((logits.reshape(len(logits), -1).argmax(1) == labels.numpy()).sum())
    return hits / len(test)


def is_spec(text: str) -> bool:
    """Whether `text` names data rather than a file."""
    return text == "digits" or text.startswith(KINDS)


def check_calibration(given: list[str]) -> None:
    """Refuse what cannot be read before the work starts. Raises CommandError, FileNotFoundError, PictureError."""
    if not given:
        raise CommandError(
            "int8 layers need pictures to measure ranges on: --calibrate FOLDER, PICTURES, FILE.npz or a data SPEC"
        )
    if len(given) > 1 or not is_spec(given[0]):
        for path in find_pictures(given):
            path.stat()
