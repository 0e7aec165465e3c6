"""Attention-augmented convolution (Bello et al., arXiv 1904.09925): some of the output channels come from global
self-attention over the positions of the map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RelativePosition2d(nn.Module):
    """``bias[n, h, (i, j), (u, v)] = q[n, h, (i, j)] . (height[u - i] + width[v - j])``: what the distance between
    two positions adds to their attention logit.

    One vector of `dim` numbers for each vertical and each horizontal distance, shared by the heads. Distances beyond
    those of a map of `size` get the vector of the largest, so that maps of any size work (ours; the paper's layers
    have one size). Initial values: normal, standard deviation ``dim ** -0.5`` [recall].

    Shapes: q [N, heads, H*W, dim], H, W -> [N, heads, H*W, H*W].
    """

    def __init__(self, dim: int, size: tuple[int, int], device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.size = size
        height, width = (torch.randn(2 * s - 1, dim, device=device, dtype=dtype) * dim**-0.5 for s in size)
        self.height, self.width = nn.Parameter(height), nn.Parameter(width)

    def forward(self, q: Tensor, height: int, width: int) -> Tensor:
        grid = q.unflatten(2, (height, width))
        rows = torch.einsum("nhijd,iud->nhiju", grid, self._table(self.height, height))
        columns = torch.einsum("nhijd,jvd->nhijv", grid, self._table(self.width, width))
        return (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(4).flatten(2, 3)

    @staticmethod
    def _table(vectors: Tensor, length: int) -> Tensor:
        """[length, length, dim]: the vector for the way from one position to another."""
        most = vectors.shape[0] // 2
        at = torch.arange(length, device=vectors.device)
        return vectors[(at - at[:, None]).clamp(-most, most) + most]


class AAConv2d(nn.Module):
    """``concat(conv(x), project(attention(x)))``: a convolution with ``out_channels - dv`` filters beside multi-head
    self-attention of width dv.

    ``q, k, v = qkv(x)``, a 1x1 convolution; for each head ``softmax(q' (k + height + width)^T) v`` with
    ``q' = q / sqrt(dk / heads)`` and the relative positions of :class:`RelativePosition2d`; ``project`` is a 1x1
    convolution over the heads' results. ``dk = heads * max(round(key_ratio * out_channels / heads), min_key_dim)`` and
    ``dv = heads * max(round(value_ratio * out_channels / heads), 1)``.

    Args:
        kernel_size, stride, dilation, bias: of the convolution, as in PyTorch; `bias` also of the 1x1 ones. Odd kernels
            only, padded so that the map keeps its size (`padding` None), or is divided by the stride and rounded up.
        num_heads, key_ratio, value_ratio, min_key_dim: heads, the paper's kappa and upsilon, the least key width of a
            head.
        feat_size: rows and columns of the map that attention sees (after stride and pooling), or one number: which
            relative distances have vectors of their own.
        pool: attention sees the map divided by this factor more than the stride, by an average pool over an odd
            window; its result is enlarged bilinearly. 1: it doesn't.
        conv_layer: what makes the convolution, called with the arguments of ``nn.Conv2d``:
            ``partial(AWConv2d, rd_ratio=8)``, for instance.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    Raises: ValueError for an even kernel, another padding, unequal strides, or no filters left for the convolution.

    Source: 8 heads, kappa = 2 upsilon = 0.2, keys of at least 20 a head, the pooling by 2 in large maps, and the
    attention layers in all but the first stage are [recall]; they give a ResNet-50 of the published 25.8 M parameters,
    which is no proof. For strides, pooling the attention's input is ours; so is the rounding of the widths.

    >>> AAConv2d(16, 32, 3, stride=2, num_heads=2, feat_size=4)(torch.randn(2, 16, 7, 8)).shape
    torch.Size([2, 32, 4, 4])
    """

    replaces = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        *,
        feat_size: int | tuple[int, int],
        num_heads: int = 8,
        key_ratio: float = 0.2,
        value_ratio: float = 0.1,
        min_key_dim: int = 20,
        pool: int = 1,
        conv_layer: Callable[..., nn.Module] = nn.Conv2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        kernel, strides, dilations, size = (_pair(v) for v in (kernel_size, stride, dilation, feat_size))
        same = (dilations[0] * (kernel[0] // 2), dilations[1] * (kernel[1] // 2))
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0 or strides[0] != strides[1]:
            raise ValueError(f"AAConv2d needs odd kernels and equal strides, got kernel {kernel} and stride {strides}")
        if padding is not None and _pair(padding) != same:
            raise ValueError(f"padding must keep the map's size: {same} for this kernel, got {padding}")
        if min(num_heads, pool, *size) < 1:
            raise ValueError(f"num_heads, pool and feat_size must be positive, got {num_heads}, {pool} and {feat_size}")
        key = max(round(key_ratio * out_channels / num_heads), min_key_dim)
        value = max(round(value_ratio * out_channels / num_heads), 1)
        self.num_heads, self.widths = num_heads, (num_heads * key, num_heads * key, num_heads * value)
        filters = out_channels - self.widths[2]
        if filters < 1:
            raise ValueError(
                f"{num_heads} heads of {value} values leave no filter of {out_channels} to the convolution; lower "
                "num_heads or value_ratio"
            )
        self.conv = conv_layer(in_channels, filters, kernel, strides, same, dilations, bias=bias, **made)
        self.qkv = nn.Conv2d(in_channels, sum(self.widths), 1, bias=bias, **made)
        self.position = RelativePosition2d(key, size, **made)
        self.project = nn.Conv2d(self.widths[2], self.widths[2], 1, bias=bias, **made)
        factor = strides[0] * pool
        self.pool: nn.Module | None = None
        if factor > 1:
            self.pool = nn.AvgPool2d(factor | 1, factor, padding=factor // 2, count_include_pad=False)
        self.enlarge = pool > 1

    @classmethod
    def from_layer(cls, old: nn.Conv2d, **arguments: Any) -> AAConv2d:
        """In place of `old`: its first filters are the convolution's. For :func:`~leanconv.nn.convert`."""
        if old.groups != 1:
            raise ValueError(f"attention-augmented convolution has no groups, the layer has {old.groups}")
        if isinstance(old.padding, str):
            raise ValueError(f"padding must be numbers, the layer has {old.padding!r}")
        sizes: dict[str, Any] = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        new = cls(old.in_channels, old.out_channels, bias=old.bias is not None, **sizes, **arguments)
        with torch.no_grad():
            for kept, given in zip((new.conv.weight, new.conv.bias), (old.weight, old.bias), strict=True):
                if isinstance(kept, Tensor) and given is not None:
                    kept.copy_(given[: kept.shape[0]])
        return new

    def attend(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, dv, H, W]: what the attention branch computes, without pooling."""
        height, width = x.shape[2:]
        q, k, v = self.qkv(x).flatten(2).split(self.widths, 1)
        q, k, v = (m.unflatten(1, (self.num_heads, -1)).transpose(2, 3) for m in (q, k, v))  # [N, heads, H*W, dim]
        bias = self.position(q * q.shape[-1] ** -0.5, height, width)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.project(y.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        attended = self.attend(x if self.pool is None else self.pool(x))
        if self.enlarge:
            attended = F.interpolate(attended, size=y.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([y, attended], 1)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
