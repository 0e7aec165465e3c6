"""AW-convolution on a GPU in one pass: the gain of each sample is applied inside the matrix products (Triton).

``y[n] = conv2d(x[n], weight * gain[n])`` (:mod:`leanconv.nn.aw_functional`) as an implicit matrix product over channels
last: a tile of one sample's output positions x output channels, summed over taps and blocks of input channels. No
sample's kernel is ever written to memory. A gain that is constant along the inputs scales each tap's product, one that
is constant along the outputs scales what a tap reads, any other scales the weights as they are loaded.

Backward: the gradient of x is the same product with the roles exchanged; those of weight and gain come from the
gradient of each sample's kernel, dK, which stays in registers: ``grad_weight = sum_n dK[n] * gain[n]``, and
``grad_gain[n]`` is ``dK[n] * weight`` summed over the axes that share the gain. Sums that several programs contribute
to are added afterwards, in a fixed order, and block sizes depend on shapes alone: the same from run to run.

float32, float16 and bfloat16 with sums in float32; float32 is multiplied as TF32 where
``torch.backends.cudnn.conv.fp32_precision`` is "tf32", as in PyTorch's convolutions. Not differentiable twice.

**Not timed on a GPU yet**: the block sizes are reasoned, not measured. Results and gradients are tested with Triton's
interpreter, and the kernels compile for compute capability 9.0. Depthwise and other narrow groups are computed
correctly but waste most of each tile; ``impl="per_sample"`` suits those.

triton comes with PyTorch's GPU builds; :data:`AVAILABLE` says whether it is there. With ``TRITON_INTERPRET=1`` set
before this module is imported, tensors on the CPU work, very slowly: for tests.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from leanconv.nn.aw_functional import Window

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
AVAILABLE = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PROGRAMS = 264  # twice the multiprocessors of an H100 or H200: weight gradients are split over samples up to this


class Blocks(NamedTuple):
    """Sizes of a tile, and how a program runs."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


def _fit(size: int, most: int) -> int:
    """The power of two that holds `size`, from 16 (the least of a matrix product) to `most`."""
    return min(max(16, 1 << (size - 1).bit_length()), most)


def product_blocks(positions: int, columns: int, summed: int, dtype: torch.dtype, precision: str) -> Blocks:
    """Positions x columns of a tile, and summed channels a step, for result and gradient of the input.

    16-bit types: up to 128 x 128 x 64, 96 KiB of shared memory in three stages, so that two programs fit into a
    multiprocessor of 228 KiB; TF32: half the depth; float32 without tensor cores: 64 x 64 x 16, for registers.

    >>> product_blocks(3136, 64, 64, torch.bfloat16, "ieee")
    Blocks(rows=128, columns=64, depth=64, num_warps=4, num_stages=3)
    >>> product_blocks(49, 512, 512, torch.bfloat16, "ieee").rows
    64
    """
    half = dtype != torch.float32
    most = 128 if half or precision == "tf32" else 64
    rows, wide = _fit(positions, most), _fit(columns, most)
    depth = _fit(summed, 64 if half else 32 if precision == "tf32" else 16)
    return Blocks(rows, wide, depth, 8 if rows * wide >= 128 * 128 else 4, 3 if most == 128 else 2)


def weight_blocks(outputs: int, inputs: int, positions: int, dtype: torch.dtype, precision: str) -> Blocks:
    """Outputs x inputs of a tile, and positions a step, for the gradients of weight and gain. At most 128 x 64: the
    tile has two sums, and wider ones spill registers.

    >>> weight_blocks(512, 512, 49, torch.bfloat16, "ieee")
    Blocks(rows=128, columns=64, depth=64, num_warps=8, num_stages=3)
    """
    half = dtype != torch.float32
    most = 128 if half or precision == "tf32" else 64
    rows, wide = _fit(outputs, most), _fit(inputs, 64)
    depth = _fit(positions, 64 if half else 32)
    return Blocks(rows, wide, depth, 8 if rows * wide >= 128 * 64 else 4, 3 if most == 128 else 2)


def _precision(dtype: torch.dtype) -> str:
    if dtype != torch.float32:
        return "ieee"
    cudnn: Any = torch.backends.cudnn
    return "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"


def _strides(gain: Tensor) -> list[int]:
    """Elements from one index of each axis to the next; 0 where the gain is constant along it."""
    return [stride if size > 1 else 0 for size, stride in zip(gain.shape, gain.stride(), strict=True)]


def _weight_strides(weight: Tensor, groups: int) -> list[int]:
    """[group, output, input, row, column]"""
    outputs = weight.shape[0] // groups
    return [outputs * weight.stride(0), *weight.stride()]


def _geometry(weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> dict[str, int]:
    return {
        "HEIGHT": weight.shape[2],
        "WIDTH": weight.shape[3],
        "STRIDE_Y": stride[0],
        "STRIDE_X": stride[1],
        "PAD_Y": padding[0],
        "PAD_X": padding[1],
        "DILATION_Y": dilation[0],
        "DILATION_X": dilation[1],
    }


def _product(
    source: Tensor,
    weight: Tensor,
    gain: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
) -> Tensor:
    """The convolution of `source` or, transposed, the gradient of its input; `size` is that of the result's maps."""
    from leanconv.nn import aw_triton_kernels as kernels

    n, outputs, inputs = source.shape[0], weight.shape[0] // groups, weight.shape[1]
    columns, summed = (inputs, outputs) if transposed else (outputs, inputs)
    target = torch.empty(
        (n, groups * columns, *size), dtype=source.dtype, device=source.device, memory_format=torch.channels_last
    )
    if target.numel() == 0:
        return target
    weights, gains = _weight_strides(weight, groups), _strides(gain)
    mode = kernels.BOTH
    if gain.shape[2] == 1 or gain.shape[3] == 1:
        along_summed = gain.shape[2 if transposed else 3] == 1
        mode = kernels.COLUMNS if along_summed else kernels.SUMMED
    if transposed:
        weights[1], weights[2], gains[2], gains[3] = weights[2], weights[1], gains[3], gains[2]
    skip = tuple(stride) if transposed else (1, 1)
    positions = math.ceil(size[0] / skip[0]) * math.ceil(size[1] / skip[1])
    precision = _precision(source.dtype)
    blocks = product_blocks(positions, columns, summed, source.dtype, precision)
    tiles = math.ceil(positions / blocks.rows) * math.ceil(columns / blocks.columns)
    grid = (tiles * skip[0] * skip[1] * groups * n,)
    with torch.cuda.device_of(source):
        kernels.product[grid](
            source,
            weight,
            gain,
            target,
            groups,
            columns,
            summed,
            *source.shape[2:],
            *size,
            *weights,
            *gains,
            **_geometry(weight, stride, padding, dilation),
            TRANSPOSED=transposed,
            STEP_Y=skip[0] // math.gcd(skip[0], dilation[0]),
            STEP_X=skip[1] // math.gcd(skip[1], dilation[1]),
            MODE=mode,
            BY_TAP=gain.shape[4:] != (1, 1),
            PRECISION=precision,
            BLOCK_M=blocks.rows,
            BLOCK_N=blocks.columns,
            BLOCK_K=blocks.depth,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )
    return target


@custom_op("leanconv::aw_triton", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    window = Window((stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]), groups)
    return _product(x, weight, gain, window.output_size(x, weight), stride, padding, dilation, groups, False)


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    window = Window((stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]), groups)
    size = (x.shape[0], weight.shape[0], *window.output_size(x, weight))
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@custom_op("leanconv::aw_triton_grad_input", mutates_args=())
def _grad_input(
    grad: Tensor,
    weight: Tensor,
    gain: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    return _product(grad, weight, gain, size, stride, padding, dilation, groups, True)


@_grad_input.register_fake
def _(
    grad: Tensor,
    weight: Tensor,
    gain: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    whole = (grad.shape[0], groups * weight.shape[1], *size)
    return torch.empty(whole, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)


@custom_op("leanconv::aw_triton_grad_kernels", mutates_args=())
def _grad_kernels(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    from leanconv.nn import aw_triton_kernels as kernels

    n, taps = x.shape[0], weight.shape[2:].numel()
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    sum_outputs, sum_inputs = gain.shape[2] == 1, gain.shape[3] == 1
    precision = _precision(x.dtype)
    blocks = weight_blocks(outputs, inputs, grad.shape[2] * grad.shape[3], x.dtype, precision)
    o_tiles, i_tiles = math.ceil(outputs / blocks.rows), math.ceil(inputs / blocks.columns)
    tiles = o_tiles * i_tiles * taps * groups
    each = math.ceil(n / min(max(PROGRAMS // tiles, 1), max(n, 1))) or 1
    splits = math.ceil(n / each)
    made: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    weight_parts = torch.empty((splits, groups, outputs, taps, inputs), **made)
    parts = (o_tiles if sum_outputs else 1) * (i_tiles if sum_inputs else 1)
    varies = (1 if sum_outputs else outputs, 1 if sum_inputs else inputs)
    gain_parts = torch.empty((parts, n, groups, taps, *varies), **made)
    if n and grad.numel():
        with torch.cuda.device_of(x):
            kernels.weight_gradient[(tiles * splits,)](
                grad,
                x,
                weight,
                gain,
                weight_parts,
                gain_parts,
                n,
                each,
                groups,
                outputs,
                inputs,
                *x.shape[2:],
                *grad.shape[2:],
                *_weight_strides(weight, groups),
                *_strides(gain),
                **_geometry(weight, stride, padding, dilation),
                SUM_OUTPUTS=sum_outputs,
                SUM_INPUTS=sum_inputs,
                PRECISION=precision,
                BLOCK_O=blocks.rows,
                BLOCK_I=blocks.columns,
                BLOCK_P=blocks.depth,
                num_warps=blocks.num_warps,
                num_stages=blocks.num_stages,
            )
    grad_weight = weight_parts.sum(0).view(weight.shape[0], *weight.shape[2:], inputs).permute(0, 3, 1, 2)
    grad_gain = gain_parts.sum(0).permute(0, 1, 3, 4, 2).unflatten(4, weight.shape[2:])
    grad_gain = grad_gain.sum_to_size(gain.shape).to(gain.dtype).contiguous()
    return grad_weight.to(weight.dtype).contiguous(memory_format=torch.channels_last), grad_gain


@_grad_kernels.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    grad_weight = torch.empty_like(weight, memory_format=torch.channels_last)
    return grad_weight, torch.empty_like(gain, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.window = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gain = ctx.saved_tensors
    grad = grad.contiguous(memory_format=torch.channels_last)
    grad_x = grad_weight = grad_gain = None
    if ctx.needs_input_grad[0]:
        grad_x = _grad_input(grad, weight, gain, x.shape[2:], *ctx.window)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grad_weight, grad_gain = _grad_kernels(grad, x, weight, gain, *ctx.window)
    return grad_x, grad_weight, grad_gain, None, None, None, None


_forward.register_autograd(_backward, setup_context=_setup)


def gated_conv2d_cuda(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> Tensor:
    """``y[n] = conv2d(x[n], weight * gain[n])`` by the Triton kernels.

    Args: x: [N, C1, H, W]; weight: [C2, C1 / groups, h, w], of x's type; gain: [N, g, O, I, h, w] of any floating type,
        each axis but the first possibly 1; under autocast, x and weight may be of any type.

    Shapes: -> [N, C2, H', W'] in x's type (autocast's, where that is on) and memory format.
    Raises: RuntimeError without triton, for tensors elsewhere than on a GPU, and for types that the kernels don't have.
    """
    if not AVAILABLE:
        raise RuntimeError("the Triton kernels of AW-convolution need triton, not installed; use impl='per_sample'")
    if not x.is_cuda and not INTERPRETED:
        raise RuntimeError(f"the Triton kernels of AW-convolution run on GPUs, the input is on {x.device}")
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x, weight = x.to(torch.get_autocast_dtype(kind)), weight.to(torch.get_autocast_dtype(kind))
    if x.dtype not in DTYPES or weight.dtype != x.dtype:
        raise RuntimeError(
            "the Triton kernels of AW-convolution take input and weight of one type, float32, float16 or bfloat16, "
            f"not {x.dtype} and {weight.dtype}; use impl='per_sample'"
        )
    if INTERPRETED and x.dtype == torch.bfloat16:
        raise RuntimeError("Triton's interpreter doesn't multiply bfloat16; take float32 or float16")
    plain = x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    y = _forward(x, weight, gain, list(window.stride), list(window.padding), list(window.dilation), window.groups)
    return y.contiguous() if plain else y
