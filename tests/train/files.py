"""Small data sets of picture files, made up."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from leanconv.pictures import smooth_pictures


def encoded(number: int, form: str = "PNG", size: tuple[int, int] = (12, 10)) -> bytes:
    """A picture file; its first pixel is as bright as `number`, the rest random."""
    pixels = smooth_pictures(1, *size, 3, seed=number)[0]
    pixels[0, 0] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def folders(
    root: Path,
    counts: dict[str, int],
    classes: Iterable[str] = ("cat", "dog"),
    form: str = "PNG",
    size: int | None = None,
) -> Path:
    """`counts` pictures a class in each split, of `size` x `size`, in folders."""
    number = 0
    for split, count in counts.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                content = encoded(number, form, (size, size) if size else (12, 10))
                (root / split / name / f"{i:03}.{form.lower()}").write_bytes(content)
                number += 1
    return root


def shard(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar file."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def shards(root: Path, counts: dict[str, int], classes: int = 2, form: str = "PNG", size: int | None = None) -> Path:
    """`counts` shards of 3 pictures for each split, of `size` x `size`; the classes take turns."""
    number = 0
    for split, count in counts.items():
        for i in range(count):
            members = []
            for _ in range(3):
                content = encoded(number, form, (size, size) if size else (12, 10))
                members += [(f"{number:05}.cls", b"%d" % (number % classes)), (f"{number:05}.{form.lower()}", content)]
                number += 1
            shard(root / f"{split}-{i:04}.tar", members)
    return root
