"""MeliusNet (Bethge et al., arXiv 2001.05936): dense blocks that widen the map, improvement blocks that correct what
was added.

Lists, stem, clip and rounding as in larq/zoo's `literature/meliusnet.py`, whose parameter count this network matches;
the paper itself was not read.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from leanconv.models._registry import picture_cfg, register
from leanconv.models._straight_through import straight_through
from leanconv.models.dense import build_dense
from leanconv.nn.fractal import BinaryDenseLayer


class MeliusUnit(nn.Module):
    """The channels that a dense block and the improvement block after it add to x.

    ``u = dense(x)``, then ``u + improve(concat(x, u))``, both BN -> sign -> binary 3x3. In the paper's form the
    improvement is added to the last channels of concat(x, u); those are u, so the concatenation of x and this
    result is the same map.

    Args: clip: where straight-through gradients end; the rest as in :class:`leanconv.nn.BinaryConv2d`.
    Shapes: [N, in_channels, H, W] -> [N, growth, H, W].
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        *,
        binarize_input: Any = "ste_sign",
        binarize_weight: Any = "sign",
        clip: float = 1.3,
        pad_value: int = 0,
    ) -> None:
        super().__init__()
        names = (binarize_input, binarize_weight, clip)
        self.dense = BinaryDenseLayer(in_channels, growth, pad_value=pad_value, **straight_through(*names))
        self.improve = BinaryDenseLayer(in_channels + growth, growth, pad_value=pad_value, **straight_through(*names))

    def forward(self, x: Tensor) -> Tensor:
        u = self.dense(x)
        return u + self.improve(torch.cat([x, u], 1))


default_cfgs = generate_default_cfgs(
    {"meliusnet22": picture_cfg(224, paper_ids="arXiv:2001.05936", paper_name="MeliusNet", first_conv="stem.conv1")}
)


@register(float_twin="resnet18")
def meliusnet22(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MeliusNet22: 17 dense and 17 improvement blocks of 64 channels, grouped stem."""
    args = {"layers": (4, 5, 4, 4), "reductions": (320 / 160, 480 / 224, 480 / 256), "stem": "grouped"} | kwargs
    return build_dense("meliusnet22", pretrained, MeliusUnit, **args)
