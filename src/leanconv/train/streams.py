"""Pictures that stay in their files until a batch needs them, read by worker processes."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from leanconv.preprocess import PictureError, Preprocessing, prepare
from leanconv.train.augment import augment
from leanconv.train.batches import Batches, MemoryBatches, Part, Share
from leanconv.train.chance import seed_at
from leanconv.train.data import Data, DataError, Pictures, Split, share_of
from leanconv.train.recipe import Augment, Recipe, RecipeError
from leanconv.train.transforms import PictureTransform, decode, of_single_pictures

IN_MEMORY = 2 << 30  # bytes that a split's pictures may take


class Store(Protocol):
    """Files of pictures by number. Copied into worker processes, so it holds no open file."""

    def name(self, index: int) -> str:
        """What to call the file in a message."""
        ...

    def read(self, index: int) -> bytes:
        """Its content. Raises OSError."""
        ...


@dataclass(frozen=True)
class StreamedSplit:
    """Pictures in a `store`: the numbers `chosen` of them, int64 [N], and their labels, int64 [N]."""

    store: Store
    chosen: Tensor
    labels: Tensor
    rules: Preprocessing
    workers: int = 4

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.rules.input_size
        return height, width, channels

    def select(self, chosen: Tensor) -> StreamedSplit:
        return dataclasses.replace(self, chosen=self.chosen[chosen], labels=self.labels[chosen])

    def picture(self, index: int) -> Image.Image:
        """A picture as it was stored. Raises DataError."""
        place = int(self.chosen[index])
        name = self.store.name(place)
        try:
            return decode(self.store.read(place), name)
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None
        except PictureError as error:
            raise DataError(str(error)) from None

    def pictures(
        self, batch_size: int, *, rank: int = 0, world: int = 1, device: torch.device | str | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As :meth:`leanconv.train.data.Pictures.pictures`, resized and cropped by the rules. Raises DataError."""
        mine = share_of(len(self), rank, world)
        batches = [
            range(start, min(start + batch_size, mine.stop)) for start in range(mine.start, mine.stop, batch_size)
        ]
        yield from read_batches(self, batches, _Prepare(self.rules), device)

    def load(self) -> Split:
        """All of the pictures in memory, resized and cropped by the rules. Raises DataError."""
        images = torch.empty(len(self), *self.picture_shape, dtype=torch.uint8)
        start = 0
        for part, _ in self.pictures(64):
            images[start : start + len(part)] = part
            start += len(part)
        return Split(images, self.labels)


@dataclass(frozen=True)
class OpenedSplits:
    """What a folder or a set of shards holds."""

    train: StreamedSplit | None
    test: StreamedSplit
    classes: list[str]

    def settled(self, augment: Augment, stream: bool | None) -> Data:
        """Each split in memory or in its files, by the rule of :func:`leanconv.train.data.load_data`."""
        train = None if self.train is None else _settle(self.train, stream, bool(of_single_pictures(augment)))
        return Data(train, _settle(self.test, stream, False), self.classes, prepared=True)


def _settle(split: StreamedSplit, stream: bool | None, needs_files: bool) -> Pictures:
    if stream is None:
        stream = needs_files or len(split) * math.prod(split.picture_shape) >= IN_MEMORY
    return split if stream else split.load()


# ------------------------------------------------------------------------------------------------------------- reading

Transform = Callable[[Image.Image, int], np.ndarray]  # a picture and its number -> uint8 [H, W, C]


@dataclass(frozen=True)
class _Prepare:
    """The transform for evaluation."""

    rules: Preprocessing

    def __call__(self, image: Image.Image, index: int) -> np.ndarray:
        return prepare(image, self.rules)


@dataclass(frozen=True)
class _Reader:
    """Pictures by number, for a DataLoader. What cannot be read is given as the text that says so: an error raised in a
    worker process would arrive wrapped in its traceback.
    """

    split: StreamedSplit
    transform: Transform

    def __getitem__(self, index: int) -> tuple[np.ndarray, int] | str:
        try:
            return self.transform(self.split.picture(index), index), int(self.split.labels[index])
        except DataError as error:
            return str(error)


def _collate(samples: list[tuple[np.ndarray, int] | str]) -> tuple[Tensor, Tensor] | str:
    pixels, labels = [], []
    for sample in samples:
        if isinstance(sample, str):
            return sample
        pixels.append(sample[0])
        labels.append(sample[1])
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


def _start_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides what it means


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _start(loader: Any) -> Iterator[Any]:
    """``iter(loader)`` without PyTorch's handler of SIGCHLD. That raises an error about a lost worker wherever the main
    thread happens to be; without it the error comes from waiting for the worker's batch, where it can be caught.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    started = iter(loader)
    signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
    return started


def read_batches(
    split: StreamedSplit,
    batches: Sequence[Sequence[int]],
    transform: Transform,
    device: torch.device | str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pictures with these numbers, batch by batch: uint8 [B, H, W, C] and labels int64 [B] on `device`.

    Read ahead by the split's `workers`, but by no more than half as many processes as there are batches.
    Raises: DataError.
    """
    on_gpu = device is not None and torch.device(device).type == "cuda"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
        loader: Any = DataLoader(
            _Reader(split, transform),  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=min(split.workers, len(batches) // 2, os.cpu_count() or 1),
            collate_fn=_collate,
            worker_init_fn=_start_worker,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # so that the global one is left alone
        )
        started = _start(loader)
    try:
        for batch in started:
            if isinstance(batch, str):
                raise DataError(batch)
            images, labels = batch
            yield images.to(device, non_blocking=on_gpu), labels.to(device, non_blocking=on_gpu)
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two where a batch was on its way
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that reads pictures was killed ({_line(error)}); where memory or /dev/shm ran "
            "out, enlarge it or lower `workers` (0: read in the main process)"
        ) from None


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class _Draw:
    """A random transform whose draws follow from the seed, the epoch and the picture, whatever process makes them."""

    transform: PictureTransform
    seed: int
    epoch: int

    def __call__(self, image: Image.Image, index: int) -> np.ndarray:
        return self.transform(image, seed_at(self.seed, "augment", self.epoch, "picture", index))


class StreamedBatches:
    """Batches of a :class:`StreamedSplit`. Single pictures are changed by the workers, whole batches on the device.

    The order of an epoch is one random permutation of all pictures, whose first ``steps * batch_size`` are used. So
    part p of step s of epoch e is the same whatever process computes it, and starting at any step reads nothing of
    what was before.
    """

    def __init__(self, split: StreamedSplit, recipe: Recipe, share: Share, device: torch.device | str) -> None:
        self.split = dataclasses.replace(split, workers=recipe.workers)
        self.recipe, self.share, self.device = recipe, share, torch.device(device)
        self.size = share.part_size(recipe.batch_size)
        self.steps = len(split) // recipe.batch_size
        if self.steps == 0:
            raise RecipeError(f"batch_size: {recipe.batch_size} is more than the {len(split)} training pictures")
        self.transform = PictureTransform(recipe.augment, split.rules)
        self.on_batch = recipe.augment.model_copy(update={"crop": None})

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Part]]:
        seed = self.recipe.seed
        shuffled = torch.randperm(
            len(self.split), generator=torch.Generator().manual_seed(seed_at(seed, "order", epoch))
        )
        batches = []
        for step in range(start, self.steps):
            for part in self.share.mine():
                begin = step * self.recipe.batch_size + part * self.size
                batches.append(shuffled[begin : begin + self.size].tolist())
        chance = torch.Generator(self.device)
        read = read_batches(self.split, batches, _Draw(self.transform, seed, epoch), self.device)
        for step in range(start, self.steps):
            parts = []
            for part in self.share.mine():
                images, labels = next(read)
                x = images.permute(0, 3, 1, 2).float()
                chance.manual_seed(seed_at(seed, "augment", epoch, step, part))
                parts.append((augment(x, self.on_batch, chance), labels))
            yield parts


def training_batches(
    split: Pictures, rules: Preprocessing, recipe: Recipe, share: Share, device: torch.device | str
) -> Batches:
    """The training batches of a run on `device`. Raises RecipeError."""
    if isinstance(split, StreamedSplit):
        return StreamedBatches(dataclasses.replace(split, rules=rules), recipe, share, device)
    if not isinstance(split, Split):
        raise TypeError(f"expected a Split or a StreamedSplit, not {type(split).__name__}")
    for name in of_single_pictures(recipe.augment):
        if name != "crop":
            raise RecipeError(
                f"augment.{name} changes pictures one by one as they are read from files, and those of {recipe.data} "
                "lie in memory; leave it out, or give them as imagefolder:PATH or webdataset:PATH"
            )
    return MemoryBatches(split.to(device), recipe, share)
