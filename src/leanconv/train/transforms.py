"""From the bytes of a picture file to the pixels of a training picture, with timm's random transforms."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from leanconv import models  # noqa: F401  (prepares torchvision for timm)
from leanconv.preprocess import MODES, PictureError, Preprocessing, _eight_bit, prepare
from leanconv.train.recipe import Augment, RecipeError

from timm.data.transforms_factory import transforms_imagenet_train  # isort: skip


def decode(content: bytes, name: str) -> Image.Image:
    """The picture in a file's `content`, upright (EXIF orientation), of an animated one the first frame.

    Raises: PictureError, whose text starts with `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                return ImageOps.exif_transpose(_eight_bit(image))
    except UnidentifiedImageError:
        raise PictureError(f"{name}: not a picture that can be read (PNG, JPEG, WebP, BMP, GIF, TIFF, PPM)") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name}: the picture is damaged or cannot be read ({error})") from None


def of_single_pictures(augment: Augment) -> list[str]:
    """The names of the transforms in `augment` that need a picture as it was before resizing, or one at a time.

    >>> of_single_pictures(Augment(flip=True, color_jitter=0.4))
    ['color_jitter']
    """
    return [name for name in ("crop", "color_jitter", "auto_augment") if getattr(augment, name)]


class PictureTransform:
    """The random transforms of single pictures that `augment` asks for, in timm's order: `crop` (timm's random resized
    crop with `rules`' interpolation, ratio 3/4 to 4/3), `auto_augment`, `color_jitter`. Without `crop` a picture is
    resized and cropped at its centre by `rules`, as for evaluation.

    Raises: RecipeError for a policy that timm doesn't know, or changes of colour where pictures have none.

    >>> rules = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    >>> transform = PictureTransform(Augment(crop=(0.2, 1)), rules)
    >>> transform(Image.new("RGB", (20, 10)), seed=0).shape
    (8, 8, 3)
    """

    def __init__(self, augment: Augment, rules: Preprocessing) -> None:
        channels, height, width = rules.input_size
        coloured = [name for name in of_single_pictures(augment) if name != "crop"]
        if coloured and channels != 3:
            raise RecipeError(f"augment.{coloured[0]} changes colours and needs pictures of 3 channels, not {channels}")
        self.rules = rules
        self.crops = augment.crop is not None
        try:
            self.crop, self.recolour, _ = transforms_imagenet_train(
                (height, width),
                scale=augment.crop,
                hflip=0.0,
                color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]
                force_color_jitter=True,
                auto_augment=augment.auto_augment,
                interpolation=rules.interpolation,
                mean=rules.mean,
                std=rules.std,
                separate=True,
            )
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise RecipeError(
                f"augment.auto_augment: timm has no policy {augment.auto_augment!r} ({type(error).__name__}); "
                "for instance rand-m7-mstd0.5, augmix-m5-w4-d2, original, 3a"
            ) from None

    def __call__(self, image: Image.Image, seed: int) -> np.ndarray:
        """uint8 [H, W, C]; the draws follow from `seed` alone."""
        if self.crops:
            mode = MODES[self.rules.input_size[0]]
            image = image if image.mode == mode else image.convert(mode)
        else:
            pixels = prepare(image, self.rules)
            if not self.recolour.transforms:
                return pixels
            image = Image.fromarray(pixels)
        with seeded(seed):
            if self.crops:
                image = self.crop(image)
            pixels = np.asarray(self.recolour(image))
        return pixels.reshape(*pixels.shape[:2], -1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which Python's, numpy's and torch's generators (timm's transforms draw from each of them) start from
    a 63-bit `seed`; then they go on as if nothing had been drawn. torch's is the one of the CPU.
    """
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
