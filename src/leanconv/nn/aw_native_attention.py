"""The attention maps of AW-convolution in one call of the native core, for evaluation on a CPU.

In eager mode the nine small operators of the module cost more than what they compute: at batch 1 as much as a tenth of
a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from leanconv.nn.aw_fused import AVAILABLE

if AVAILABLE:
    from leanconv import _core

if TYPE_CHECKING:
    from leanconv.nn.aw_attention import WeightAttention

GATES: dict[type[nn.Module], str] = {nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Identity: "none"}


def _hooked(m: nn.Module) -> bool:
    return bool(m._forward_hooks or m._forward_pre_hooks)


def _plain_weight(conv: nn.Module) -> Tensor | None:
    """[outputs, inputs] in one piece of memory, or None if this isn't a bare 1x1 convolution in float32 on a CPU."""
    weight = conv._parameters.get("weight")  # the dictionaries: modules find their attributes slowly
    if type(conv) is not nn.Conv2d or type(weight) is not nn.Parameter or _hooked(conv):
        return None
    plain = weight.is_cpu and weight.dtype == torch.float32 and conv._parameters["bias"] is None
    return weight if plain and weight.flatten(1).is_contiguous() else None


def _norm(norm: nn.Module) -> tuple[list[int], float] | None:
    """Addresses of a batch norm's statistics and factors; none for Identity; None for another layer."""
    if _hooked(norm) or norm.training:
        return None
    if type(norm) is nn.Identity:
        return [], 0.0
    if type(norm) is not nn.BatchNorm2d or norm._buffers["running_mean"] is None:
        return None
    statistics, factors = norm._buffers, norm._parameters
    addresses = []
    for t in (statistics["running_mean"], statistics["running_var"], factors["weight"], factors["bias"]):
        if t is not None and not (t.is_cpu and t.dtype == torch.float32 and t.is_contiguous()):
            return None
        addresses.append(0 if t is None else t.data_ptr())
    return addresses, norm.eps


def native_maps(attn: WeightAttention, x: Tensor) -> Tensor | None:
    """What ``attn.flat(x)`` is, or None where its modules have to compute it.

    >>> from leanconv.nn.aw_attention import WeightAttention
    >>> attn, x = WeightAttention(32, 8, (3, 3)).eval(), torch.randn(2, 32, 9, 9)
    >>> native_maps(attn, x) is None
    True
    >>> with torch.no_grad():
    ...     native_maps(attn, x).shape
    torch.Size([2, 8, 3, 3])
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not AVAILABLE or attn.training:
        return None
    if type(x) is not Tensor or not x.is_cpu or x.dtype != torch.float32 or x.dim() != 4 or not x.numel():
        return None
    if torch.is_autocast_enabled("cpu") or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return None
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return None
    parts = cast(dict[str, nn.Module], attn._modules)
    act, last = parts["act"], parts["gate"]
    gate = GATES.get(type(last))
    if type(act) is not nn.ReLU or act._forward_hooks or act._forward_pre_hooks or gate is None or _hooked(last):
        return None
    first, second, norm1, norm2 = (
        _plain_weight(parts["fc1"]),
        _plain_weight(parts["fc2"]),
        _norm(parts["bn1"]),
        _norm(parts["bn2"]),
    )
    if first is None or second is None or norm1 is None or norm2 is None or x.shape[1] != first.shape[1]:
        return None
    x = x.contiguous(memory_format=torch.channels_last)
    n, channels, height, width = x.shape
    rows, columns = attn.size
    maps = torch.empty(n, second.shape[0], rows, columns)
    sizes = [n, height, width, channels, rows, columns, first.shape[0], second.shape[0]]
    _core.aw_attention(
        sizes, x.data_ptr(), first.data_ptr(), *norm1, second.data_ptr(), *norm2, gate, attn.offset, maps.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return maps
