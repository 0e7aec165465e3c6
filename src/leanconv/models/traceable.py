"""What FX-based feature extraction (timm's and torchvision's) takes as one node instead of tracing into it.

These layers look at shapes or at how they are exported, in Python, which symbolic tracing cannot follow.
"""

from __future__ import annotations

from timm.models import register_notrace_module

from leanconv import nn as layers
from leanconv.nn.augmented_attention import RelativePosition2d

LEAVES = (
    layers.BinaryConv1d,
    layers.BinaryConv2d,
    layers.BinaryConvTranspose2d,
    layers.BinaryLinear,
    layers.ReafConv2d,
    layers.RSign,
    layers.RPReLU,
    RelativePosition2d,
)

for _layer in LEAVES:
    register_notrace_module(_layer)
