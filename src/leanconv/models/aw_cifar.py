"""Residual networks for 32x32 pictures with attention on the weights of both 3x3 convolutions of every block.

AW-convolution: Zhu et al., arXiv 2108.08205, of which only the abstract and quotations could be read. That small
pictures were among its data is [recall]; the networks, the layers that become AW-convolutions, and the wiring with
other attention are [open]: chosen here.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs
from torch import nn

from leanconv.models._registry import cifar_cfg, register
from leanconv.models.cifar_resnet import build_cifar
from leanconv.models.residual import ResidualNet
from leanconv.models.wide_resnet import WideResNet, build_wide
from leanconv.nn.aw_conv import AWConv2d
from leanconv.nn.convert import convert

WRAPPED = ("layer*.conv1", "layer*.conv2")


class AWResidualNet(ResidualNet):
    """A :class:`~leanconv.models.residual.ResidualNet` whose blocks have AW-convolutions. The other weights are drawn
    as in the plain network: equal seeds give equal ones.

    Args: aw_args: arguments of :class:`~leanconv.nn.aw_conv.AWConv2d`, by name: ``{"rd_ratio": 8}``.
    """

    def __init__(self, *args: Any, aw_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        convert(self, AWConv2d, only=WRAPPED, **(aw_args or {}))


class AWWideResNet(WideResNet):
    """The same of a :class:`~leanconv.models.wide_resnet.WideResNet`."""

    def __init__(self, *args: Any, aw_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        convert(self, AWConv2d, only=WRAPPED, **(aw_args or {}))


_PAPER = {"paper_ids": "arXiv:2108.08205", "paper_name": "AW-convolution (our reconstruction)"}
_NAMES = (
    "aw_resnet20_cifar",
    "aw_resnet56_cifar",
    "aw_se_resnet20_cifar",
    "aw_se_resnet56_cifar",
    "aw_cbam_resnet20_cifar",
    "aw_cbam_resnet56_cifar",
    "aw_wrn28_10",
)

default_cfgs = generate_default_cfgs({name: cifar_cfg(**_PAPER) for name in _NAMES})


def _aw(name: str, pretrained: bool, depth: int, attn_layer: str | None = None, **kwargs: Any) -> nn.Module:
    return build_cifar(name, pretrained, depth, net=AWResidualNet, **{"attn_layer": attn_layer} | kwargs)


@register()
def aw_resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-20 for 32x32 pictures."""
    return _aw("aw_resnet20_cifar", pretrained, 20, **kwargs)


@register()
def aw_resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-56 for 32x32 pictures."""
    return _aw("aw_resnet56_cifar", pretrained, 56, **kwargs)


@register()
def aw_se_resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-20 for 32x32 pictures with squeeze-and-excitation (arXiv 1709.01507), reduction 16."""
    return _aw("aw_se_resnet20_cifar", pretrained, 20, **{"attn_layer": "se"} | kwargs)


@register()
def aw_se_resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-56 for 32x32 pictures with squeeze-and-excitation (arXiv 1709.01507), reduction 16."""
    return _aw("aw_se_resnet56_cifar", pretrained, 56, **{"attn_layer": "se"} | kwargs)


@register()
def aw_cbam_resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-20 for 32x32 pictures with CBAM (arXiv 1807.06521), reduction 16, 7x7."""
    return _aw("aw_cbam_resnet20_cifar", pretrained, 20, **{"attn_layer": "cbam"} | kwargs)


@register()
def aw_cbam_resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-56 for 32x32 pictures with CBAM (arXiv 1807.06521), reduction 16, 7x7."""
    return _aw("aw_cbam_resnet56_cifar", pretrained, 56, **{"attn_layer": "cbam"} | kwargs)


@register()
def aw_wrn28_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-WRN-28-10 for 32x32 pictures."""
    return build_wide("aw_wrn28_10", pretrained, 28, 10, net=AWWideResNet, **kwargs)
