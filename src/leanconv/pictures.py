"""Pictures made up from a fixed seed, for measuring and checking where no real ones are at hand."""

from __future__ import annotations

import numpy as np
from PIL import Image


def smooth_pictures(count: int, height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Random pictures without hard edges, always the same for the same seed: uint8 N,H,W,C.

    >>> smooth_pictures(2, 8, 6, 3).shape
    (2, 8, 6, 3)
    """
    rng = np.random.default_rng(seed)
    pictures = np.empty((count, height, width, channels), np.uint8)
    for picture in pictures:
        for channel in range(channels):
            coarse = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8))
            picture[..., channel] = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return pictures
