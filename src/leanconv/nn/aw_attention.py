"""F1 of AW-convolution (Zhu et al., arXiv 2108.08205): from a layer's input to attention maps for its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.nn.aw_native_attention import native_maps
from leanconv.nn.exporting import is_exporting, is_lowering

SHARES = ("in", "out", "taps", "none")
POOLS = ("kernel", "one")
GATES: dict[str, tuple[Callable[[], nn.Module], float]] = {  # the module and its value at 0
    "sigmoid": (nn.Sigmoid, 0.5),
    "tanh": (nn.Tanh, 0.0),
    "none": (nn.Identity, 0.0),
}
STARTS = ("half", "identity")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """`value`, or a ValueError that lists the choices.

    >>> check_choice("share", "in", SHARES)
    'in'
    """
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(choices)}")
    return value


def _bins(size: int, bins: int, like: Tensor) -> Tensor:
    """[bins, size]: the averages of adaptive pooling along one axis, as a matrix."""
    first, index = torch.arange(bins, device=like.device)[:, None], torch.arange(size, device=like.device)
    start, end = first * size // bins, ((first + 1) * size + bins - 1) // bins
    inside = (index >= start) & (index < end)
    return inside.to(like.dtype) / (end - start)


def pool_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling [N, C, H, W] -> [N, C, *size].

    In an export (not the engine's) it is two matrix products, since ONNX has no adaptive pooling and height and width
    may be dynamic.

    >>> pool_to(torch.arange(7.0).view(1, 1, 1, 7), (1, 3)).flatten().tolist()
    [1.0, 3.0, 5.0]
    """
    if is_lowering() or not is_exporting() or size == (1, 1):
        return F.adaptive_avg_pool2d(x, size)
    return _bins(x.shape[2], size[0], x) @ x @ _bins(x.shape[3], size[1], x).t()


class WeightAttention(nn.Module):
    """Attention maps A for the weights of a convolution, computed from its input, one set for each sample.

    ``A = gate(norm(P2(relu(norm(P1(pool(x))))))) + offset``, with P1, P2 1x1 convolutions without bias; P1 has
    ``max(in_channels // rd_ratio, 1)`` outputs. Averages, P1, ReLU, P2 are the paper's; r, the norms and the gate are
    [recall]: no readable source confirms them. Groups are [open] in the paper.

    Args:
        groups: those of the convolution; P1 and P2 are ungrouped.
        share: see :class:`~leanconv.nn.aw_conv.AWConv2d`, as for rd_ratio, pool, gate and norm_layer.
        offset: added to the gate; [inferred], 0 in the paper's formula.
        start_at_zero: the last affine layer (norm, else P2) starts with weight 0, so that the gate starts at gate(0).

    In evaluation without gradients, eager, in float32 on a CPU, with batch norms (or none) and no hooks, the native
    core computes all of it at once (:func:`~leanconv.nn.aw_native_attention.native_maps`); equal up to rounding.

    Shapes: [N, in_channels, H, W] -> [N, g, O, I, h, w], with g = groups, O = out_channels / g, I = in_channels / g and
    the kernel's size h x w, each 1 instead where a map is shared along it; it broadcasts against
    ``weight.unflatten(0, (g, O))``.
    Raises: ValueError for an unknown share, pool or gate, or an rd_ratio that isn't a whole number from 1.

    >>> WeightAttention(32, 64, (3, 3))(torch.randn(2, 32, 9, 9)).shape
    torch.Size([2, 1, 64, 1, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        groups: int = 1,
        *,
        rd_ratio: int = 16,
        share: str = "in",
        pool: str = "kernel",
        gate: str = "sigmoid",
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        offset: float = 0.0,
        start_at_zero: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(rd_ratio, int) or rd_ratio < 1:
            raise ValueError(f"rd_ratio must be a whole number from 1 (hidden width in_channels // it), got {rd_ratio}")
        check_choice("share", share, SHARES)
        self.size = kernel_size if check_choice("pool", pool, POOLS) == "kernel" else (1, 1)
        outputs, inputs = out_channels // groups, in_channels // groups
        self.maps = {  # groups, outputs of a group, inputs of a group
            "in": (groups, outputs, 1),
            "out": (groups, 1, inputs),
            "taps": (1, 1, 1),
            "none": (groups, outputs, inputs),
        }[share]
        hidden, count = max(in_channels // rd_ratio, 1), self.maps[0] * self.maps[1] * self.maps[2]
        self.fc1 = nn.Conv2d(in_channels, hidden, 1, bias=False, device=device, dtype=dtype)
        self.bn1 = norm_layer(hidden).to(device=device, dtype=dtype)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, count, 1, bias=False, device=device, dtype=dtype)
        self.bn2 = norm_layer(count).to(device=device, dtype=dtype)
        self.gate = GATES[check_choice("gate", gate, tuple(GATES))][0]()
        self.offset = offset
        for conv in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if start_at_zero:
            last = self.bn2 if getattr(self.bn2, "weight", None) is not None else self.fc2
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(x).unflatten(1, self.maps)

    def flat(self, x: Tensor) -> Tensor:
        """The maps in one dimension: [N, g * O * I, h, w]."""
        maps = native_maps(self, x)
        if maps is not None:
            return maps
        x = self.act(self.bn1(self.fc1(pool_to(x, self.size))))
        x = self.gate(self.bn2(self.fc2(x)))
        return x + self.offset if self.offset else x
