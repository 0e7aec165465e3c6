"""Convolutions with weights scaled for each sample, by the native core: forward and both gradients, on a CPU.

``y[n] = conv2d(x[n], weight * gain[n])`` as a direct convolution: a block of weights is multiplied by a sample's gain
just before it is used, while it is in the cache, so that no kernel of a sample is ever in memory as a whole. Sums are
in float32. With bfloat16 inputs the scaled weights are rounded to bfloat16 once, where the processor multiplies
bfloat16, else they stay float32. The gradients are the true ones of that function, and have no gradients themselves.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from leanconv.nn.aw_functional import Window

if importlib.util.find_spec("leanconv._core") is not None:
    from leanconv import _core

    AVAILABLE = True
else:  # Python source without the native core
    AVAILABLE = False

LOW = (torch.float32, torch.bfloat16)


def operand(x: Tensor) -> Tensor:
    """x, in autocast's dtype where that is on: what ``conv2d`` would read.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     operand(torch.ones(1)).dtype
    torch.bfloat16
    """
    return x.to(torch.get_autocast_dtype("cpu")) if _casts(x) else x


def _casts(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def supports(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> bool:
    """Whether the native core computes this: float32 or bfloat16 on a CPU, at least one sample and one result; not
    under ``torch.jit.trace`` or transforms like ``torch.func.vmap``.

    >>> from leanconv.nn.aw_functional import Window
    >>> x, weight, gain = torch.ones(1, 2, 4, 4), torch.ones(2, 2, 3, 3), torch.ones(1, 1, 2, 1, 3, 3)
    >>> supports(x, weight, gain, Window()), supports(x.double(), weight.double(), gain, Window())
    (True, False)
    """
    if not AVAILABLE or x.device.type != "cpu" or weight.device.type != "cpu" or gain.device.type != "cpu":
        return False
    if not torch.compiler.is_compiling() and (torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()):
        return False  # a trace is for others to run; vmap has no rule for the operator
    dtype = torch.get_autocast_dtype("cpu") if _casts(x) else x.dtype
    if dtype not in LOW or weight.dtype not in LOW or gain.dtype not in LOW:
        return False
    return x.shape[0] > 0 and min(window.output_size(x, weight)) > 0


def fused(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> Tensor:
    """``y[n] = conv2d(x[n], weight * gain[n])`` for what :func:`supports` accepts; shapes, dtypes of the other forms.

    >>> from leanconv.nn.aw_functional import Window
    >>> x, weight, gain = torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3), torch.full((1, 1, 1, 1, 1, 1), 0.5)
    >>> fused(x, weight, gain, Window()).item()
    9.0
    """
    y = aw_conv(operand(x), weight, gain, window.stride, window.padding, window.dilation, window.groups)
    return y.contiguous() if x.is_contiguous() else y


def _pixels(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _shape(x: tuple[int, ...], weight: Tensor, window: tuple[list[int], list[int], list[int], int]) -> list[int]:
    stride, padding, dilation, groups = window
    n, channels, height, width = x
    return [n, channels, height, width, weight.shape[0], groups, *weight.shape[2:], *stride, *padding, *dilation]


def _check(x: Tensor, weight: Tensor, gain: Tensor) -> None:
    """What the native core, which gets addresses, cannot see."""
    if x.dim() != 4 or weight.dim() != 4 or gain.dim() != 6:
        raise ValueError("AW-convolution takes x [N, C, H, W], weight [O, I, h, w] and gain [N, g, O, I, h, w]")
    if not all(t.device.type == "cpu" for t in (x, weight, gain)) or x.dtype not in LOW:
        raise ValueError(f"the fused AW-convolution takes float32 or bfloat16 on a CPU, got {x.dtype} on {x.device}")


@torch.library.custom_op("leanconv::aw_conv", mutates_args=())
def aw_conv(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The convolution as an operator of PyTorch; its result is channels_last."""
    _check(x, weight, gain)
    if weight.shape[1] * groups != x.shape[1]:
        raise ValueError(f"the weight {list(weight.shape)} with {groups} groups does not fit {x.shape[1]} channels")
    x, weight, gain = _pixels(x), weight.float(), gain.float().contiguous()
    y = _empty(x, weight, stride, padding, dilation)
    _core.aw_correlate(
        _shape(x.shape, weight, (stride, padding, dilation, groups)),
        False,
        x.data_ptr(),
        x.dtype == torch.bfloat16,
        weight.data_ptr(),
        weight.stride(),
        gain.data_ptr(),
        gain.shape,
        y.data_ptr(),
        y.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return y


def _empty(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    rows, columns = ((size + 2 * pad - d * (k - 1) - 1) // s + 1 for size, k, s, pad, d in sizes)
    shape = (x.shape[0], weight.shape[0], rows, columns)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@aw_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return _empty(x, weight, stride, padding, dilation)


@torch.library.custom_op("leanconv::aw_conv_backward", mutates_args=())
def aw_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, and of weight and gain; empty where `wanted`, one for x and one for both others, is False."""
    _check(x, weight, gain)
    _check(grad, weight, gain)
    grad_x, grad_weight, grad_gain = _gradients(x, weight, gain, wanted)
    grad, x = _pixels(grad.to(x.dtype)), _pixels(x)
    weight, gain = weight.float(), gain.float().contiguous()
    window, bf16, threads = (stride, padding, dilation, groups), x.dtype == torch.bfloat16, torch.get_num_threads()
    shape = _shape(x.shape, weight, window)
    scaled = (weight.data_ptr(), weight.stride(), gain.data_ptr(), gain.shape)
    if wanted[0]:
        _core.aw_correlate(shape, True, grad.data_ptr(), bf16, *scaled, grad_x.data_ptr(), bf16, threads)
    if wanted[1]:
        of_weight, of_gain = torch.empty_like(weight), torch.empty_like(gain)
        target = (of_weight.data_ptr(), of_weight.stride(), of_gain.data_ptr())
        _core.aw_weight_gradient(shape, x.data_ptr(), bf16, grad.data_ptr(), bf16, *scaled, *target, threads)
        grad_weight.copy_(of_weight)
        grad_gain.copy_(of_gain)
    return grad_x, grad_weight, grad_gain


def _gradients(x: Tensor, weight: Tensor, gain: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x, memory_format=torch.channels_last) if wanted[0] else x.new_empty(0)
    if not wanted[1]:
        return grad_x, weight.new_empty(0), gain.new_empty(0)
    return grad_x, torch.empty_like(weight), torch.empty_like(gain, memory_format=torch.contiguous_format)


@aw_conv_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(x, weight, gain, wanted)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, gain, *ctx.window = inputs
    ctx.save_for_backward(x, weight, gain)


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[1] or needs[2]]
    grad_x, grad_weight, grad_gain = aw_conv_backward(grad, *ctx.saved_tensors, *ctx.window, wanted)
    return grad_x if needs[0] else None, grad_weight if needs[1] else None, grad_gain if needs[2] else None, *[None] * 4


aw_conv.register_autograd(_backward, setup_context=_save)
