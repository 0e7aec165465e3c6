"""Random changes of a whole batch at once, on the device where it lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from leanconv.train.recipe import Augment


def augment(x: Tensor, how: Augment, generator: torch.Generator | None = None) -> Tensor:
    """Shift, turn, resize and mirror each picture at random, within the bounds of `how`.

    Whole-pixel shifts alone copy pixels; turning, resizing and broken shifts interpolate bilinearly. What comes from
    beyond the border is 0 (black, when called before normalisation).

    Args: x: [N, C, H, W], float. generator: the source of randomness, on x's device.
    Returns: a new tensor of the same shape (x itself if nothing is to be changed).
    """
    n = x.shape[0]

    def uniform(bound: float) -> Tensor:
        return (torch.rand(n, device=x.device, generator=generator) * 2 - 1) * bound

    if how.flip:
        mirror = torch.rand(n, device=x.device, generator=generator) < 0.5
        x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    if how.rotate or how.scale or how.shift != int(how.shift):
        return _affine(x, uniform(how.rotate), 1 + uniform(how.scale), uniform(how.shift), uniform(how.shift))
    if how.shift:
        bound = int(how.shift)
        moves = torch.randint(-bound, bound + 1, (2, n), device=x.device, generator=generator)
        return _shift(x, moves[0], moves[1], bound)
    return x


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
