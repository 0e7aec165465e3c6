"""Pictures in tar files as the webdataset project lays them out: ``PATH/train-000.tar`` ..., ``PATH/val-000.tar`` ...

A shard is an uncompressed tar whose name holds the word train, or test (or val, validation), as train-0001.tar and
imagenet1k-validation-07.tar do. Neighbouring members that share their name up to the first dot are a sample: one
picture (``<key>.jpg``, ``.png``, ...) and ``<key>.cls``, the number of its class in decimal text; other members are
passed over. ``PATH/classes.txt`` names the classes, one a line; without it they are called 0, 1, ...

The shards are not streamed from end to end, as webdataset's own library does, but read at random places through an
index (where each picture's bytes begin, and its class), because only that gives an exact shuffle, any number of
processes that together compute the same steps, and a start in the middle of an epoch. What it costs:

- once, a pass over all tar headers, kept in ``PATH/.leanconv-<split>.npz`` where PATH can be written to (and made again
  when a shard's size or time changed). At ImageNet's size that is some three minutes of processor time and 1.3 million
  seeks; the index takes 65 MB.
- in each epoch one read of about 100 kB at a random place a picture: nothing to an SSD or where the page cache holds
  the shards, but a spinning disk gives some 100 pictures/s and a network store is slow. Copy shards to a local SSD.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from leanconv.preprocess import EXTENSIONS, Preprocessing
from leanconv.program import write_atomic
from leanconv.train.data import DataError
from leanconv.train.folders import TEST_NAMES
from leanconv.train.streams import OpenedSplits, StreamedSplit
from leanconv.train.strings import Strings

SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # key and extension of a member
BLOCK = 512  # bytes, the unit of tar files


@dataclass(frozen=True)
class Index:
    """Where the pictures of some shards are: for picture i the shard's number (int32), where its bytes begin and how
    many there are (int64), its class (int64) and the name of its member.
    """

    shard: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    label: np.ndarray
    names: Strings

    def to_bytes(self, made_from: str) -> bytes:
        file = io.BytesIO()
        np.savez(
            file,
            made_from=np.array(made_from),
            shard=self.shard,
            begin=self.begin,
            size=self.size,
            label=self.label,
            text=self.names.text,
            ends=self.names.ends,
        )
        return file.getvalue()

    @staticmethod
    def load(path: Path, made_from: str) -> Index | None:
        """The saved index, or None where there is none that fits."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["made_from"]) != made_from:
                    return None
                names = Strings(file["text"], file["ends"])
                return Index(file["shard"], file["begin"], file["size"], file["label"], names)
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return None


@dataclass(frozen=True)
class ShardStore:
    """Pictures in tar files."""

    shards: list[Path]
    index: Index

    def name(self, index: int) -> str:
        return f"{self.shards[self.index.shard[index]]}: {self.index.names[index]}"

    def read(self, index: int) -> bytes:
        size = int(self.index.size[index])
        with open(self.shards[self.index.shard[index]], "rb", buffering=0) as file:
            file.seek(int(self.index.begin[index]))
            content = b""
            while len(content) < size:
                more = file.read(size - len(content))
                if not more:
                    raise OSError("the shard became shorter since it was indexed")
                content += more
        return content


def open_splits(path: Path, rules: Preprocessing, train: bool, workers: int) -> OpenedSplits:
    """Find the pictures of a folder of shards; `train` False leaves the training ones alone. Raises DataError."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    train_shards = find_shards(path, ("train",))
    test_shards = next((found for word in TEST_NAMES if (found := find_shards(path, (word,)))), [])
    if not test_shards or (train and not train_shards):
        raise DataError(f"{path}: expected shards train-*.tar and test-*.tar (or val-*.tar), uncompressed")
    classes = _read_classes(path / "classes.txt")
    test_index = open_index(test_shards, path / ".leanconv-test.npz")
    train_index = None
    if train_shards and (train or classes is None):
        train_index = open_index(train_shards, path / ".leanconv-train.npz")
    if classes is None:
        known = test_index if train_index is None else train_index
        classes = [str(number) for number in range(int(known.label.max()) + 1)]
    _check_labels(test_index, test_shards, len(classes))
    if train_index is not None:
        _check_labels(train_index, train_shards, len(classes))
        unseen = sorted(set(np.unique(test_index.label).tolist()) - set(np.unique(train_index.label).tolist()))
        if unseen:
            raise DataError(f"{path}: class {classes[unseen[0]]!r} occurs in the test shards only")
    return OpenedSplits(
        _split(train_shards, train_index, rules, workers) if train and train_index is not None else None,
        _split(test_shards, test_index, rules, workers),
        classes,
    )


def find_shards(path: Path, words: Sequence[str]) -> list[Path]:
    """The tar files in a folder whose name holds one of `words`, set off by ``-``, ``_`` or a dot; sorted."""
    marked = re.compile(rf"(?:.*[-_.])?(?:{'|'.join(words)})(?:[-_.].*)?\.tar")
    return sorted(file for file in path.iterdir() if marked.fullmatch(file.name))


def open_index(shards: list[Path], saved: Path) -> Index:
    """The index of some shards, from the file `saved` or made and, where that is possible, saved. Raises DataError."""
    try:
        state = [(shard.name, stat.st_size, stat.st_mtime_ns) for shard in shards for stat in [shard.stat()]]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
    made_from = json.dumps(state)
    index = Index.load(saved, made_from)
    if index is None:
        index = make_index(shards)
        with contextlib.suppress(OSError):  # a folder that cannot be written to
            write_atomic(saved, index.to_bytes(made_from))
    return index


def make_index(shards: list[Path]) -> Index:
    """Read the tar headers and labels of some shards. Raises DataError."""
    names: list[str] = []
    rows: list[tuple[int, int, int, int]] = []
    for number, shard in enumerate(shards):
        before = len(rows)
        try:
            with open(shard, "rb") as file:
                for picture, label in _samples(shard, file):
                    names.append(picture.name)
                    rows.append((number, picture.offset_data, picture.size, label))
        except OSError as error:
            raise DataError(f"{shard}: cannot be read ({error.strerror or error})") from None
        if len(rows) == before:
            raise DataError(f"{shard}: holds no samples; expected members <key>.jpg (or .png, ...) and <key>.cls")
    columns = np.array(rows, np.int64).T
    return Index(columns[0].astype(np.int32), columns[1], columns[2], columns[3], Strings.of(names))


def _samples(shard: Path, file: io.BufferedReader) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The picture and the class of each sample in a shard."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for member in _members(shard, file):
        match = SAMPLE.fullmatch(member.name)
        if not member.isfile() or match is None:
            continue
        if match[1] != key and members:
            yield _sample(shard, file, key, members)
            members = {}
        key, extension = match[1], match[2].lower()
        if extension in members:
            raise DataError(f"{shard}: sample {key!r} has two members .{extension}")
        members[extension] = member
    if members:
        yield _sample(shard, file, key, members)


def _sample(
    shard: Path, file: io.BufferedReader, key: str, members: dict[str, tarfile.TarInfo]
) -> tuple[tarfile.TarInfo, int]:
    pictures = [member for extension, member in members.items() if f".{extension}" in EXTENSIONS]
    if len(pictures) != 1:
        raise DataError(
            f"{shard}: sample {key!r} has {len(pictures)} pictures, expected one; its members: .{', .'.join(members)}"
        )
    if "cls" not in members:
        raise DataError(f"{shard}: sample {key!r} has no label; expected {key}.cls with the number of its class")
    text = os.pread(file.fileno(), members["cls"].size, members["cls"].offset_data)
    if not re.fullmatch(rb"\s*\d{1,9}\s*", text):
        raise DataError(f"{shard}: {key}.cls holds {text[:20]!r}, expected the number of a class, from 0")
    return pictures[0], int(text)


def _members(shard: Path, file: io.BufferedReader) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                yield member
            if os.pread(file.fileno(), BLOCK, tar.offset).strip(b"\0"):  # at damage it just ends
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except tarfile.TarError as error:
        raise DataError(f"{shard}: not an uncompressed tar file that can be read ({error})") from None


def _read_classes(path: Path) -> list[str] | None:
    try:
        classes = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    while classes and not classes[-1].strip():
        classes.pop()
    if not all(name.strip() for name in classes):
        raise DataError(f"{path}: expected the name of a class in each line; one is empty")
    if not classes:
        raise DataError(f"{path}: expected the name of a class in each line; it is empty")
    return [name.strip() for name in classes]


def _check_labels(index: Index, shards: list[Path], classes: int) -> None:
    wrong = np.flatnonzero(index.label >= classes)
    if len(wrong):
        first = wrong[0]
        raise DataError(
            f"{shards[index.shard[first]]}: {index.names[int(first)]} has class {index.label[first]}, "
            f"but there are {classes} classes, counted from 0"
        )


def _split(shards: list[Path], index: Index, rules: Preprocessing, workers: int) -> StreamedSplit:
    labels = torch.from_numpy(index.label.astype(np.int64))
    return StreamedSplit(ShardStore(shards, index), torch.arange(len(labels)), labels, rules, workers)
