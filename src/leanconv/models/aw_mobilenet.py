"""AW-MobileNet: timm's MobileNets with attention on the weights of their depthwise convolutions.

Zhu et al., arXiv 2108.08205, is remembered to have used MobileNet [recall]; which of its layers is [open]. Here the
depthwise 3x3: on a 1x1 convolution AW is no more than a gate on the output channels.
"""

from __future__ import annotations

from typing import Any

from timm import create_model
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import nn

from leanconv.models._registry import picture_cfg, register
from leanconv.nn.aw_conv import AWConv2d
from leanconv.nn.convert import convert

_CFG = {
    "first_conv": "conv_stem",
    "classifier": "classifier",
    "paper_ids": "arXiv:2108.08205",
    "paper_name": "AW-convolution (our reconstruction)",
}

default_cfgs = generate_default_cfgs({name: picture_cfg(224, **_CFG) for name in ("aw_mobilenetv1", "aw_mobilenetv2")})


def _build(name: str, pretrained: bool, plain: str, **kwargs: Any) -> nn.Module:
    """timm's network `plain` with AW-convolutions, through timm's builder.

    Args: aw_args: arguments of :class:`~leanconv.nn.aw_conv.AWConv2d`, by name: ``{"rd_ratio": 8}``; the rest, timm's.
    """

    def make(aw_args: dict[str, Any] | None = None, **args: Any) -> nn.Module:
        return convert(create_model(plain, **args), AWConv2d, only=["*.conv_dw"], **(aw_args or {}))

    feature_cfg = {"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"}
    return build_model_with_cfg(make, name, pretrained, **{"feature_cfg": feature_cfg} | kwargs)


@register()
def aw_mobilenetv1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-MobileNetV1: every depthwise 3x3 is an AW-convolution [open]."""
    return _build("aw_mobilenetv1", pretrained, "mobilenetv1_100", **kwargs)


@register()
def aw_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-MobileNetV2: every depthwise 3x3 is an AW-convolution [open]."""
    return _build("aw_mobilenetv2", pretrained, "mobilenetv2_100", **kwargs)
