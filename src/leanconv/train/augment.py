"""Random changes of a whole batch at once, on the device where it lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from leanconv.train.recipe import Augment

ERASED = (0.02, 1 / 3)  # smallest and largest share of the picture that `erase` blackens
ERASED_RATIO = (0.3, 1 / 0.3)  # its width to its height
CROP_RATIO = (3 / 4, 4 / 3)
TRIES = 10


def augment(x: Tensor, how: Augment, generator: torch.Generator | None = None) -> Tensor:
    """Crop, mirror, shift, turn, resize and erase each picture at random, within the bounds of `how`.

    Whole-pixel shifts alone copy pixels; cropping, turning, resizing and broken shifts interpolate bilinearly. What
    comes from beyond the border, or is erased, is 0 (black, when called before normalisation).

    `crop` resizes a box to the whole size: its area is even in the bounds, the logarithm of width to height even in
    3/4..4/3, as in timm and torchvision, but not rounded to whole pixels. `erase` is how often a rectangle of 2 to 33 %
    of the area is blackened, its width to height in 0.3..3.33 (random erasing, Zhong et al., arXiv 1708.04896, cited
    from memory, with timm's bounds). Of ten such boxes the first that fits is taken, or if none does, the first cut to
    the picture's size.

    Args: x: [N, C, H, W], float. generator: the source of randomness, on x's device.
    Returns: a new tensor of the same shape (x itself if nothing is to be changed).
    """
    n = x.shape[0]

    def uniform(bound: float) -> Tensor:
        return (torch.rand(n, device=x.device, generator=generator) * 2 - 1) * bound

    if how.crop is not None:
        x = _crop(x, *_boxes(x, how.crop, CROP_RATIO, generator))
    if how.flip:
        mirror = torch.rand(n, device=x.device, generator=generator) < 0.5
        x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    if how.rotate or how.scale or how.shift != int(how.shift):
        x = _affine(x, uniform(how.rotate), 1 + uniform(how.scale), uniform(how.shift), uniform(how.shift))
    elif how.shift:
        bound = int(how.shift)
        moves = torch.randint(-bound, bound + 1, (2, n), device=x.device, generator=generator)
        x = _shift(x, moves[0], moves[1], bound)
    if how.erase:
        chosen = torch.rand(n, device=x.device, generator=generator) < how.erase
        x = _erase(x, chosen, *_boxes(x, ERASED, ERASED_RATIO, generator))
    return x


def _boxes(
    x: Tensor, area: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A random box in each picture: top, left, height, width in pixels, float [N]."""
    n, _, height, width = x.shape
    draws = torch.rand(4, TRIES, n, device=x.device, generator=generator)
    pixels = height * width * (area[0] + (area[1] - area[0]) * draws[0])
    aspect = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * draws[1])
    tall, wide = (pixels / aspect).sqrt(), (pixels * aspect).sqrt()
    fits = (tall <= height) & (wide <= width)
    first = fits.float().argmax(0, keepdim=True)  # of equal ones the first
    tall = tall.gather(0, first)[0].clamp(max=height)
    wide = wide.gather(0, first)[0].clamp(max=width)
    return (height - tall) * draws[2, 0], (width - wide) * draws[3, 0], tall, wide


def _crop(x: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """The box of each picture, resized to the picture's size."""
    n, _, height, width = x.shape
    matrix = torch.zeros(n, 2, 3, device=x.device, dtype=x.dtype)
    matrix[:, 0, 0], matrix[:, 0, 2] = wide / width, (2 * left + wide) / width - 1
    matrix[:, 1, 1], matrix[:, 1, 2] = tall / height, (2 * top + tall) / height - 1
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _erase(x: Tensor, chosen: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """Blacken the pixels of each chosen picture whose centre lies in its box."""
    rows = torch.arange(x.shape[2], device=x.device) + 0.5
    columns = torch.arange(x.shape[3], device=x.device) + 0.5
    in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    erased = chosen[:, None, None] & in_rows[:, :, None] & in_columns[:, None, :]
    return x.masked_fill(erased[:, None], 0)


def _shift(x: Tensor, down: Tensor, right: Tensor, bound: int) -> Tensor:
    """Move picture i by (down[i], right[i]) whole pixels."""
    n, _, height, width = x.shape
    padded = F.pad(x, [bound] * 4)
    rows = torch.arange(height, device=x.device) + bound - down[:, None]  # [N, H]
    columns = torch.arange(width, device=x.device) + bound - right[:, None]  # [N, W]
    picture = torch.arange(n, device=x.device)
    return padded.permute(0, 2, 3, 1)[picture[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _affine(x: Tensor, degrees: Tensor, scale: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Turn about the centre, resize, then move by (down, right) pixels."""
    n, _, height, width = x.shape
    angle = degrees * (math.pi / 180)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.empty(
        n, 2, 3, device=x.device, dtype=x.dtype
    )  # output place -> input place, in units of half the size
    matrix[:, 0, 0], matrix[:, 0, 1] = cos, sin * (height / width)
    matrix[:, 1, 0], matrix[:, 1, 1] = -sin * (width / height), cos
    matrix[:, 0, 2] = -(cos * right + sin * down) * (2 / width)
    matrix[:, 1, 2] = -(cos * down - sin * right) * (2 / height)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
