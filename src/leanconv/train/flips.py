"""How many binary weights change their sign while training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from leanconv.train.optimizers import binary_parameters


class FlipRatio:
    """The share of binary weights whose sign differs from that of the last look, over all layers and for each.

    A healthy run flips many weights at first and few at the end; a share that stays at 0 shows weights that don't
    learn. Larq has the metric under the same name. Memory: a bit a weight.

    >>> from leanconv.nn import BinaryLinear
    >>> layer, flips = BinaryLinear(4, 1), FlipRatio()
    >>> _ = nn.init.constant_(layer.weight, 1.0)
    >>> flips.update(layer)
    {}
    >>> with torch.no_grad():
    ...     layer.weight[0, 0] = -1.0
    >>> flips.update(layer)
    {'all': 0.25, 'weight': 0.25}
    """

    def __init__(self) -> None:
        self._signs: dict[str, Tensor] = {}

    def update(self, model: nn.Module) -> dict[str, float]:
        """Look at `model` and compare: ``"all"`` and the name of each latent weight -> share, 0 to 1. Empty at the
        first look, and where there are no binary weights.
        """
        flipped, ratios, weights = 0, {}, 0
        for name, weight in binary_parameters(model).items():
            signs = np.packbits((weight.detach() >= 0).flatten().cpu().numpy())
            before = self._signs.get(name)
            self._signs[name] = torch.from_numpy(signs)
            if before is not None:
                count = int(np.bitwise_count(signs ^ before.numpy()).sum())
                ratios[name] = count / weight.numel()
                flipped += count
                weights += weight.numel()
        return {"all": flipped / weights, **ratios} if ratios else {}

    def state_dict(self) -> dict[str, Tensor]:
        """The signs at the last look, packed: uint8, eight weights each."""
        return dict(self._signs)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Compare with those of :meth:`state_dict` from now on."""
        self._signs = {name: signs.detach().cpu() for name, signs in state.items()}
