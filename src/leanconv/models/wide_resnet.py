"""Wide residual networks for small pictures (Zagoruyko and Komodakis, arXiv 1605.07146): few, wide blocks with the
batch norm and the ReLU before each convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from leanconv.models._registry import cifar_cfg, register
from leanconv.models.staged import StagedNet


class PreActBlock(nn.Module):
    """BN -> ReLU -> conv 3x3 -> BN -> ReLU -> conv 3x3 -> add the shortcut; where the shape changes, the shortcut is a
    1x1 convolution of the first ReLU's output.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = self.act1(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(ready)
        return self.conv2(self.act2(self.bn2(self.conv1(ready)))) + shortcut


class WideResNet(StagedNet):
    """3x3 stem -> stages ``layer1``, ``layer2``, ... of :class:`PreActBlock` -> BN, ReLU (the end of the last stage)
    -> global pooling -> ``fc``. Each stage after the first halves the map.

    Args:
        layers, channels: blocks and width of each stage. stem_width: that of the stem.
        num_classes, in_chans, global_pool, drop_rate: as in timm; num_classes 0 returns the pooled features.

    Shapes: [N, in_chans, H, W] -> [N, num_classes].

    >>> net = WideResNet((1, 1), (8, 16))
    >>> [info["num_chs"] for info in net.feature_info]
    [16, 8, 16]
    """

    def __init__(
        self,
        layers: Sequence[int],
        channels: Sequence[int],
        stem_width: int = 16,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        width = stem_width
        self.append("conv1", nn.Conv2d(in_chans, width, 3, padding=1, bias=False), width)
        for i, (depth, out) in enumerate(zip(layers, channels, strict=True), start=1):
            blocks: list[nn.Module] = [PreActBlock(width, out, 1 if i == 1 else 2)]
            blocks += [PreActBlock(out, out) for _ in range(depth - 1)]
            if i == len(layers):
                blocks.append(nn.Sequential(nn.BatchNorm2d(out), nn.ReLU(inplace=True)))
            self.append(f"layer{i}", nn.Sequential(*blocks), out, 2 ** (i - 1))
            width = out
        self.close(width, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that sort parameters into stem and blocks, for timm's layer decay."""
        return super().group_matcher(coarse) | {"stem": r"^conv1"}


default_cfgs = generate_default_cfgs({"wrn28_10_cifar": cifar_cfg(paper_ids="arXiv:1605.07146")})


def build_wide(
    name: str, pretrained: bool, depth: int, widen: int, net: type[WideResNet] = WideResNet, **kwargs: Any
) -> nn.Module:
    """A wide residual network of `depth` = 6 n + 4: three stages of n blocks, widths 16, 32, 64 times `widen`."""
    args: dict[str, Any] = {
        "layers": ((depth - 4) // 6,) * 3,
        "channels": (16 * widen, 32 * widen, 64 * widen),
        "feature_cfg": {"out_indices": (0, 1, 2, 3)},
    }
    return build_model_with_cfg(net, name, pretrained, **args | kwargs)


@register()
def wrn28_10_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-28-10 for 32x32 pictures: three stages of four blocks, widths 160, 320, 640; 36,479,194 parameters."""
    return build_wide("wrn28_10_cifar", pretrained, 28, 10, **kwargs)
