"""AW-ResNet: timm's ResNets with attention on the weights of their 3x3 convolutions, also beside other attention.

Zhu et al., "An Attention Module for Convolutional Neural Networks", arXiv 2108.08205, of which only the abstract and
quotations could be read. ResNet-101, and that AW combines with attention on activations: the abstract. The 3x3 of the
bottleneck: [recall]. Both 3x3 of the basic block, ResNeXt and the wirings with other attention: [open], chosen here.
SE, CBAM and ECA (timm's layers) stay at the end of a block's branch, before the addition; BAM comes after stages 1, 2
and 3; the convolution beside self-attention (AA) becomes AW in stages 2, 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from leanconv.models._registry import picture_cfg, register
from leanconv.nn.augmented_attention import AAConv2d
from leanconv.nn.aw_conv import AWConv2d
from leanconv.nn.bam import BAM
from leanconv.nn.convert import convert

WRAPPED = {BasicBlock: "conv[12]", Bottleneck: "conv2"}
AA_SIZES = {"layer2": 28, "layer3": 14, "layer4": 7}  # the maps of a picture of 224x224
LAYERS_18 = (2, 2, 2, 2)
LAYERS_50 = (3, 4, 6, 3)
LAYERS_101 = (3, 4, 23, 3)


class AWResNet(ResNet):
    """timm's ResNet with AW-convolutions for both 3x3 of its basic blocks or the one of its bottlenecks. The other
    weights are drawn as in timm's network: equal seeds give equal ones.

    Args:
        block, layers, kwargs: timm's.
        aw_args: arguments of :class:`~leanconv.nn.aw_conv.AWConv2d`, by name: ``{"rd_ratio": 8}``.
        aa_args: with a dict, the 3x3 of stages 2, 3 and 4 become :class:`~leanconv.nn.augmented_attention.AAConv2d`
            (these are its further arguments) whose convolution is an AW-convolution.
        bam_args: with a dict, a :class:`~leanconv.nn.bam.BAM` (these are its arguments) ends stages 1, 2 and 3.

    Shapes: [N, in_chans, H, W] -> [N, num_classes].

    >>> import torch
    >>> AWResNet(BasicBlock, (1, 1, 1, 1), channels=(16, 16, 32, 32))(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 1000])
    """

    def __init__(
        self,
        block: Any,
        layers: Sequence[int],
        *,
        aw_args: dict[str, Any] | None = None,
        aa_args: dict[str, Any] | None = None,
        bam_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(block, tuple(layers), **kwargs)
        aw: dict[str, Any] = aw_args or {}
        augmented = AA_SIZES if aa_args is not None else {}
        for stage, size in augmented.items():
            aa: dict[str, Any] = {"feat_size": size, "conv_layer": partial(AWConv2d, **aw)} | (aa_args or {})
            convert(self, AAConv2d, only=[f"{stage}.*.{WRAPPED[block]}"], **aa)
        plain = [f"layer{i}" for i in (1, 2, 3, 4) if f"layer{i}" not in augmented]
        convert(self, AWConv2d, only=[f"{stage}.*.{WRAPPED[block]}" for stage in plain], **aw)
        if bam_args is not None:
            stages: Any = [(self.get_submodule(str(info["module"])), info["num_chs"]) for info in self.feature_info]
            for stage, channels in stages[1:4]:
                stage.append(BAM(channels, **bam_args))


_PAPER = {"paper_ids": "arXiv:2108.08205", "paper_name": "AW-convolution (our reconstruction)"}
_NAMES = (
    "aw_resnet18",
    "aw_resnet34",
    "aw_resnet50",
    "aw_resnet101",
    "aw_resnext50_32x4d",
    "aw_se_resnet50",
    "aw_se_resnet101",
    "aw_cbam_resnet50",
    "aw_eca_resnet50",
    "aw_bam_resnet50",
    "aw_aa_resnet50",
)

default_cfgs = generate_default_cfgs({name: picture_cfg(224, **_PAPER) for name in _NAMES})


def _build(
    name: str, pretrained: bool, layers: Sequence[int], attention: str | None = None, **kwargs: Any
) -> nn.Module:
    """An AWResNet through timm's builder. attention: timm's name for a layer at the end of every branch."""
    block_args = {"attn_layer": attention} | kwargs.pop("block_args", {})
    args: dict[str, Any] = {"block": Bottleneck, "block_args": block_args} | kwargs
    return build_model_with_cfg(AWResNet, name, pretrained, layers=tuple(layers), **args)


@register()
def aw_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-18: both 3x3 of every basic block are AW-convolutions [open]."""
    return _build("aw_resnet18", pretrained, LAYERS_18, **{"block": BasicBlock} | kwargs)


@register()
def aw_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-34: both 3x3 of every basic block are AW-convolutions [open]."""
    return _build("aw_resnet34", pretrained, LAYERS_50, **{"block": BasicBlock} | kwargs)


@register()
def aw_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-50: the 3x3 of every bottleneck is an AW-convolution [recall]; 25,722,240 parameters."""
    return _build("aw_resnet50", pretrained, LAYERS_50, **kwargs)


@register()
def aw_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-101: the 3x3 of every bottleneck is an AW-convolution [recall]; 44,862,880 parameters."""
    return _build("aw_resnet101", pretrained, LAYERS_101, **kwargs)


@register()
def aw_resnext50_32x4d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNeXt-50 32x4d: the grouped 3x3 is an AW-convolution [open]."""
    return _build("aw_resnext50_32x4d", pretrained, LAYERS_50, **{"cardinality": 32, "base_width": 4} | kwargs)


@register()
def aw_se_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-50 with squeeze-and-excitation (arXiv 1709.01507), reduction 16."""
    return _build("aw_se_resnet50", pretrained, LAYERS_50, "se", **kwargs)


@register()
def aw_se_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-101 with squeeze-and-excitation (arXiv 1709.01507), reduction 16."""
    return _build("aw_se_resnet101", pretrained, LAYERS_101, "se", **kwargs)


@register()
def aw_cbam_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-50 with CBAM (arXiv 1807.06521), reduction 16, 7x7; as timm has it, without biases."""
    return _build("aw_cbam_resnet50", pretrained, LAYERS_50, "cbam", **kwargs)


@register()
def aw_eca_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-50 with efficient channel attention (arXiv 1910.03151)."""
    return _build("aw_eca_resnet50", pretrained, LAYERS_50, "eca", **kwargs)


@register()
def aw_bam_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-50 with BAM (arXiv 1807.06514) after stages 1, 2 and 3."""
    return _build("aw_bam_resnet50", pretrained, LAYERS_50, **{"bam_args": {}} | kwargs)


@register()
def aw_aa_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AW-ResNet-50 with self-attention (arXiv 1904.09925) beside the 3x3 of stages 2, 3 and 4, of which the paper's own
    network is [recall]."""
    return _build("aw_aa_resnet50", pretrained, LAYERS_50, **{"aa_args": {}} | kwargs)
