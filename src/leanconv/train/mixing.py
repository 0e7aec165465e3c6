"""Mixup and CutMix: pictures of a batch and their labels mixed in pairs, by timm."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from leanconv import models  # noqa: F401  (prepares torchvision for timm)
from leanconv.train.recipe import Augment, RecipeError

from timm.data import Mixup  # isort: skip


class Mixing:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of whole batches, as ``timm.data.Mixup`` does them; where
    both are asked for, one of them each time.

    Args:
        augment: alphas of the two in `mixup` and `cutmix`; with both 0 nothing is mixed.
        classes, label_smoothing: of the soft targets. Where nothing is mixed the loss has to smooth.
    """

    def __init__(self, augment: Augment, classes: int, label_smoothing: float) -> None:
        self.mixup = None
        if augment.mixup or augment.cutmix:
            self.mixup = Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                label_smoothing=label_smoothing,
                num_classes=classes,
            )

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix pictures x [N, C, H, W] (changed in place) with labels y [N]; the draws follow from `seed` alone.

        Returns: x and soft targets, float [N, classes]; without mixup and cutmix x and y themselves.
        Raises: RecipeError for an odd number of pictures.
        """
        if self.mixup is None:
            return x, y
        if len(x) % 2:
            raise RecipeError(
                f"batch_size: mixup and cutmix mix pairs, and {len(x)} pictures are computed together; make it even"
            )
        before = np.random.get_state()  # timm draws from numpy's global generator
        try:
            np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
            return self.mixup(x, y)
        finally:
            np.random.set_state(before)
