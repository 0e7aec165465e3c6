"""Data sets, named by a SPEC, in memory or, where they are too large for it, in their files until they are needed.

- ``digits``: 1797 handwritten 8x8 digits that come with scikit-learn, split by ``train_test_split(test_size=0.25,
  stratify=y, random_state=0)``, grey levels 0..16 scaled to 0..255
- ``npz:PATH``: arrays ``x_train y_train x_test y_test`` (Keras layout), pictures uint8 N,H,W or N,H,W,C
- ``imagefolder:PATH``: ``PATH/train/<class>/*`` and ``PATH/test`` (or ``val``), see :mod:`leanconv.train.folders`
- ``webdataset:PATH``: tar files ``PATH/train-*.tar`` and ``PATH/test-*.tar`` (or ``val``), see
  :mod:`leanconv.train.shards`
- ``torchvision:NAME:ROOT``: a data set of torchvision with `train`, `download`, downloaded to ROOT if it is not there
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from leanconv.preprocess import Preprocessing
from leanconv.train.recipe import Augment

FORMS = "digits, npz:PATH, imagefolder:PATH, webdataset:PATH or torchvision:NAME:ROOT"


class DataError(ValueError):
    """Data that is missing or not of the expected form; one line that says what was given and what to do."""


class Pictures(Protocol):
    """Labelled pictures: :class:`Split` in memory or :class:`~leanconv.train.streams.StreamedSplit` in files."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        ...

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        ...

    def __len__(self) -> int: ...

    def select(self, chosen: Tensor) -> Self:
        """The pictures with these numbers, int64 [M]."""
        ...

    def pictures(
        self, batch_size: int, *, rank: int = 0, world: int = 1, device: torch.device | str | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches for evaluation in order, uint8 [B, H, W, C] and int64 [B]: of the share of process `rank` of
        `world`; the shares together hold each picture once.
        """
        ...


AnyPictures = TypeVar("AnyPictures", bound=Pictures)


@dataclass(frozen=True)
class Split:
    """Pictures uint8 [N, H, W, C] and labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        _, height, width, channels = self.images.shape
        return height, width, channels

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def select(self, chosen: Tensor) -> Split:
        return Split(self.images[chosen], self.labels[chosen])

    def pictures(
        self, batch_size: int, *, rank: int = 0, world: int = 1, device: torch.device | str | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As :meth:`Pictures.pictures`.

        >>> split = Split(torch.zeros(5, 2, 2, 1, dtype=torch.uint8), torch.arange(5))
        >>> [labels.tolist() for _, labels in split.pictures(2, rank=1, world=2)]
        [[2, 3], [4]]
        """
        mine = share_of(len(self), rank, world)
        for start in range(mine.start, mine.stop, batch_size):
            part = slice(start, min(start + batch_size, mine.stop))
            yield self.images[part].to(device), self.labels[part].to(device)


def share_of(count: int, rank: int, world: int) -> range:
    """The numbers below `count` that fall to process `rank` of `world`: neighbours, as equal as can be."""
    return range(count * rank // world, count * (rank + 1) // world)


@dataclass(frozen=True)
class Data:
    """A data set: `train` is None where only a test folder was found. `prepared`: pictures were resized by rules."""

    train: Pictures | None
    test: Pictures
    classes: list[str]
    prepared: bool = False


def load_data(
    spec: str,
    rules: Preprocessing | None = None,
    *,
    train: bool = True,
    augment: Augment | None = None,
    workers: int = 4,
    stream: bool | None = None,
) -> Data:
    """Read a data set.

    Args:
        spec: one of the forms above.
        rules: how pictures are resized and cropped; those from files need them, the others have a size of their own.
        train: False reads the test split alone where that saves work.
        augment: what training will ask for; `crop`, `color_jitter` and `auto_augment` need the picture as it was.
        workers: processes that read pictures from files.
        stream: True leaves pictures in their files until a batch needs them, False reads them all, once, by `rules`.
            None decides for each split: in memory where its pictures take less than 2 GiB and `augment` allows it.
    Raises: DataError.

    >>> data = load_data("digits")
    >>> len(data.train), len(data.test), data.test.picture_shape
    (1347, 450, (8, 8, 1))
    """
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        return _digits()
    if kind == "npz" and rest:
        return _npz(Path(rest))
    if kind in ("imagefolder", "webdataset") and rest:
        if rules is None:
            raise DataError(f"data {spec!r}: pictures from files need a network's preprocessing to resize them")
        from leanconv.train import folders, shards

        opened = (folders if kind == "imagefolder" else shards).open_splits(Path(rest), rules, train, workers)
        return opened.settled(augment or Augment(), stream)
    if kind == "torchvision" and rest.count(":") >= 1:
        return _torchvision(*rest.split(":", 1))
    raise DataError(f"unknown data {spec!r}: expected {FORMS}")


def hold_out(split: AnyPictures, fraction: float, seed: int = 0) -> tuple[AnyPictures, AnyPictures]:
    """Split off about `fraction` of every class: (rest, held out). The same for every run with the same `seed`.

    Raises: DataError when a class would have no picture left on either side.
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique():
        members = (split.labels == label).nonzero().flatten()
        count = round(len(members) * fraction)
        if not 0 < count < len(members):
            raise DataError(
                f"validation: {fraction} of {len(members)} pictures of class {int(label)} cannot be held out"
            )
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return split.select((~held).nonzero().flatten()), split.select(held.nonzero().flatten())


def _split(images: Any, labels: Any, where: str) -> Split:
    images, labels = np.asarray(images), np.asarray(labels).reshape(-1)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype != np.uint8:
        raise DataError(f"{where}: pictures must be uint8 N,H,W or N,H,W,C, not {images.dtype} {list(images.shape)}")
    if images.shape[3] not in (1, 3, 4):
        raise DataError(f"{where}: pictures must have 1, 3 or 4 channels in the last place, not {list(images.shape)}")
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{where}: {len(images)} pictures but {len(labels)} labels")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(f"{where}: labels must be integers from 0, not {labels.dtype}")
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DataError('the digits come with scikit-learn: pip install "leanconv[demo]"') from None
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    names = [str(name) for name in digits.target_names]
    return Data(_split(x_train, y_train, "digits"), _split(x_test, y_test, "digits"), names)


def _npz(path: Path) -> Data:
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("one array, not an archive of several")
        with opened as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise DataError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(file.files)}")
            arrays = [file[name] for name in names]
            classes = [str(name) for name in file["classes"]] if "classes" in file else None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not an .npz file that can be read ({error})") from None
    train = _split(arrays[0], arrays[1], f"{path}: train")
    test = _split(arrays[2], arrays[3], f"{path}: test")
    count = int(max(train.labels.max(), test.labels.max())) + 1
    if classes is None:
        classes = [str(i) for i in range(count)]
    elif len(classes) < count:
        raise DataError(f"{path}: {len(classes)} class names for labels up to {count - 1}")
    return Data(train, test, classes)


def _torchvision(name: str, root: str) -> Data:
    from leanconv import _torchvision

    _torchvision.ensure_importable()
    import torchvision.datasets

    factory = getattr(torchvision.datasets, name, None)
    if factory is None:
        near = difflib.get_close_matches(name, torchvision.datasets.__all__, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"torchvision has no data set {name!r}{hint}")
    where = f"torchvision:{name}:{root}"
    try:
        parts = [_open_torchvision(factory, root, train) for train in (True, False)]
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{where}: cannot be read or downloaded ({line})") from None
    splits = []
    for part in parts:
        images = part.data.numpy() if isinstance(part.data, Tensor) else np.asarray(part.data)
        splits.append(_split(images, part.targets, where))
    classes = [str(c) for c in getattr(parts[0], "classes", [])] or [
        str(i) for i in range(int(splits[0].labels.max()) + 1)
    ]
    return Data(splits[0], splits[1], classes)


def _open_torchvision(factory: Any, root: str, train: bool) -> Any:
    try:
        part = factory(root, train=train, download=False)
    except RuntimeError:  # "Dataset not found or corrupted"
        part = factory(root, train=train, download=True)
    if not hasattr(part, "data") or not hasattr(part, "targets"):
        raise DataError("only data sets whose pictures have one size are supported; use imagefolder:PATH")
    return part
