"""Pictures in a folder for each class: ``PATH/train/<class>/*`` and ``PATH/test/<class>/*`` (or ``val/<class>/*``).

Classes are numbered in the order of their sorted names, as torchvision's ImageFolder does, and pictures may lie in
folders below that of their class. PATH may also be a test folder alone. Only names are read at first; for ImageNet
(1.28 million files) that takes seconds on a local disk, and keeps about 50 MB.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from leanconv.preprocess import EXTENSIONS, Preprocessing
from leanconv.train.data import DataError
from leanconv.train.streams import OpenedSplits, StreamedSplit
from leanconv.train.strings import Strings

TEST_NAMES = ("test", "val", "validation")


@dataclass(frozen=True)
class FolderStore:
    """Files below a folder."""

    root: Path
    names: Strings

    def name(self, index: int) -> str:
        return str(self.root / self.names[index])

    def read(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()


def open_splits(path: Path, rules: Preprocessing, train: bool, workers: int) -> OpenedSplits:
    """Find the pictures of a folder; `train` False leaves the training ones alone. Raises DataError."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    test_path = next((path / name for name in TEST_NAMES if (path / name).is_dir()), None)
    if train and (test_path is None or not (path / "train").is_dir()):
        raise DataError(f"{path}: expected the folders train and test (or val), each with a folder for each class")
    test_path = test_path or path
    classes = _folders(path / "train" if (path / "train").is_dir() else test_path)
    return OpenedSplits(
        _open_split(path / "train", classes, rules, workers) if train else None,
        _open_split(test_path, classes, rules, workers),
        classes,
    )


def _folders(path: Path) -> list[str]:
    found = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    if not found:
        raise DataError(f"{path}: expected a folder for each class")
    return found


def _open_split(path: Path, classes: list[str], rules: Preprocessing, workers: int) -> StreamedSplit:
    names: list[str] = []
    labels: list[int] = []
    numbers = {name: number for number, name in enumerate(classes)}
    for name in _folders(path):
        if name not in numbers:
            raise DataError(f"{path}: class {name!r} does not occur in the training folder")
        found = _pictures(path, name)
        names += found
        labels += [numbers[name]] * len(found)
    return StreamedSplit(
        FolderStore(path, Strings.of(names)), torch.arange(len(names)), torch.tensor(labels), rules, workers
    )


def _pictures(path: Path, name: str) -> list[str]:
    """The pictures below ``path / name``, relative to `path`, sorted."""
    found = []
    for folder, _, files in os.walk(path / name, onerror=_refuse):
        inside = os.path.relpath(folder, path)
        found += [f"{inside}/{file}" for file in files if file.lower().endswith(EXTENSIONS)]
    if not found:
        raise DataError(f"{path / name}: no pictures in this folder ({' '.join(EXTENSIONS)})")
    return sorted(found, key=lambda file: file.split("/"))


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror})") from None
