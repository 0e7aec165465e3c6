"""Pictures from files to the uint8 NHWC array that an engine model takes, by timm's evaluation rules. Needs no torch.

The result equals ``timm.data.create_transform(**config, is_training=False)`` pixel by pixel, before its conversion to
float: the short side is resized to ``floor(size / crop_pct)`` with the stated interpolation, the centre is cropped.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class PictureError(ValueError):
    """A picture that cannot be read, or preprocessing that cannot be followed; the text says which and what to do."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input, with the meanings of timm's data configuration.

    `input_size` is (channels, height, width); `crop_mode` is "center" (resize the short side, crop the centre),
    "squash" (resize both sides) or "border" (resize the long side, fill the rest with the mean colour).
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @staticmethod
    def from_dict(config: dict[str, Any] | None) -> Preprocessing:
        """Read the `preprocessing` entry of a packed file or a timm data configuration. Raises PictureError."""
        if not config:
            raise PictureError(
                "this network does not say how its pictures are prepared; compile it with "
                "preprocessing={'input_size': ..., 'mean': ..., 'std': ...}, or call the engine with an array"
            )
        try:
            size = tuple(int(n) for n in config["input_size"])
            made = Preprocessing(
                input_size=(size[0], size[1], size[2]),
                mean=tuple(float(v) for v in config["mean"]),
                std=tuple(float(v) for v in config["std"]),
                interpolation=str(config.get("interpolation", "bicubic")),
                crop_pct=float(config.get("crop_pct") or 0.875),
                crop_mode=str(config.get("crop_mode") or "center"),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise PictureError(
                f"preprocessing is incomplete: it needs input_size, mean and std ({type(error).__name__}: {error})"
            ) from None
        made._check()
        return made

    def _check(self) -> None:
        channels, height, width = self.input_size
        if channels not in MODES or height < 1 or width < 1:
            raise PictureError(f"pictures of 1, 3 or 4 channels can be prepared, not of size {list(self.input_size)}")
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise PictureError(f"mean and std need {channels} values each, std above 0: {self.mean}, {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise PictureError(f"unknown interpolation {self.interpolation!r}; known: {', '.join(INTERPOLATIONS)}")
        if self.crop_mode not in ("center", "squash", "border"):
            raise PictureError(f"unknown crop_mode {self.crop_mode!r}; known: center, squash, border")
        if not 0 < self.crop_pct <= 1:
            raise PictureError(f"crop_pct must be in (0, 1], not {self.crop_pct}")

    def with_size(self, size: int) -> Preprocessing:
        """The same rules for square pictures of another size."""
        return Preprocessing(
            (self.input_size[0], size, size), self.mean, self.std, self.interpolation, self.crop_pct, self.crop_mode
        )


def prepare(image: Image.Image, rules: Preprocessing) -> np.ndarray:
    """Resize and crop one picture: uint8, height x width x channels.

    >>> rules = Preprocessing((3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> prepare(Image.new("RGB", (60, 40), (255, 0, 0)), rules).shape
    (32, 32, 3)
    """
    channels, height, width = rules.input_size
    if image.mode != MODES[channels]:
        image = image.convert(MODES[channels])
    scaled = (math.floor(height / rules.crop_pct), math.floor(width / rules.crop_pct))
    resample = INTERPOLATIONS[rules.interpolation]
    fill: tuple[int, ...] = (0,) * channels
    if rules.crop_mode == "squash":
        image = _resize(image, scaled, resample)
    elif rules.crop_mode == "border":
        fill = tuple(round(255 * v) for v in rules.mean)
        image = _resize(image, _keep_ratio(image, scaled, longest=True), resample)
    elif scaled[0] == scaled[1]:
        image = _resize(image, _short_side(image, scaled[0]), resample)
    else:
        image = _resize(image, _keep_ratio(image, scaled, longest=False), resample)
    pixels = np.asarray(_center_crop(image, height, width, fill))
    return np.ascontiguousarray(pixels.reshape(height, width, channels))


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _short_side(image: Image.Image, size: int) -> tuple[int, int]:
    width, height = image.size
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def _keep_ratio(image: Image.Image, size: tuple[int, int], longest: bool) -> tuple[int, int]:
    ratios = (image.height / size[0], image.width / size[1])
    ratio = max(ratios) if longest else min(ratios)
    return max(1, round(image.height / ratio)), max(1, round(image.width / ratio))


def _center_crop(image: Image.Image, height: int, width: int, fill: tuple[int, ...]) -> Image.Image:
    extra_x, extra_y = max(width - image.width, 0), max(height - image.height, 0)
    if extra_x or extra_y:
        color = fill if len(fill) > 1 else fill[0]
        framed = Image.new(image.mode, (image.width + extra_x, image.height + extra_y), color)
        framed.paste(image, (extra_x // 2, extra_y // 2))
        image = framed
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def read_picture(path: str | os.PathLike[str], rules: Preprocessing) -> np.ndarray:
    """Read one picture file, turn it upright (EXIF orientation) and prepare it. Raises PictureError.

    An animated picture gives its first frame.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return prepare(ImageOps.exif_transpose(_eight_bit(image)), rules)
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture that can be read (PNG, JPEG, WebP, BMP, GIF, TIFF, PPM)") from None
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path}: the picture is damaged or cannot be read ({error})") from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greyscale by its high byte; Pillow would clip it to white."""
    if image.mode.startswith("I;16"):
        exif = image.getexif()
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        image.info["exif"] = exif.tobytes()
    return image


def find_pictures(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files as given; of a folder, everything below it with a picture's extension, sorted. Raises PictureError."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not inside:
                raise PictureError(f"{path}: no pictures in this folder ({' '.join(EXTENSIONS)})")
            found += inside
        else:
            found.append(path)
    return found


def read_pictures(paths: Sequence[str | os.PathLike[str]], rules: Preprocessing) -> np.ndarray:
    """Read several pictures into one uint8 array N x height x width x channels. Raises PictureError."""
    return np.stack([read_picture(path, rules) for path in paths])


def normalize(pictures: np.ndarray, rules: Preprocessing) -> np.ndarray:
    """uint8 N,H,W,C to float32 N,C,H,W: `(u / 255 - mean) / std`, each operation rounded to float32 as in the engine.

    >>> rules = Preprocessing((1, 1, 1), mean=(0.5,), std=(0.5,))
    >>> normalize(np.full((1, 1, 1, 1), 255, np.uint8), rules).tolist()
    [[[[1.0]]]]
    """
    scaled: np.ndarray = pictures.astype(np.float32) / np.float32(255)
    scaled = (scaled - np.asarray(rules.mean, np.float32)) / np.asarray(rules.std, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
