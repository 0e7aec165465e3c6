"""Convolutions with weights scaled for each sample: one function, computed in several ways.

``y[n] = conv2d(x[n], weight * gain[n]) + bias``. `gain` is [N, g, O, I, h, w] against the weight [g * O, I, h, w] of a
convolution with g groups; each axis but the first may be 1 instead. The tap-gated way follows from linearity: a gain
that is constant along the inputs multiplies the product of each tap, one that is constant along the outputs of a group
multiplies what a tap reads. The terms are the same, the order of the sum isn't.
The fused way (:mod:`leanconv.nn.aw_fused`) is the native core's, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from leanconv.nn.aw_fused import fused, supports
from leanconv.nn.exporting import is_exporting

Pair = tuple[int, int]

# benchmarks/aw_layer.py
FEW_POSITIONS = 128  # with fewer, reading a kernel for each sample costs more than using it
SMALL_GROUP = (
    8  # channels: with fewer, the fused form, whose vectors are of one group, is slower than a kernel a sample
)


class Window(NamedTuple):
    """Where a convolution's kernel looks; padding as rows and columns on each side."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def output_size(self, x: Tensor, weight: Tensor) -> Pair:
        """Rows and columns of the output.

        >>> Window((2, 2), (1, 1)).output_size(torch.empty(1, 4, 7, 9), torch.empty(8, 4, 3, 3))
        (4, 5)
        """
        sizes = zip(x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((size + 2 * pad - d * (k - 1) - 1) // s + 1 for size, k, s, pad, d in sizes)
        return rows, columns


Form = Callable[[Tensor, Tensor, Tensor, Window], Tensor]  # x, weight, gain, window


def _is_depthwise(weight: Tensor, window: Window) -> bool:
    return window.groups == weight.shape[0] and weight.shape[1] == 1


def _kernels(weight: Tensor, gain: Tensor, groups: int) -> Tensor:
    """weight * gain, [N, out_channels, I, h, w]."""
    return (weight.unflatten(0, (groups, -1)) * gain).flatten(1, 2)


def _folded(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> Tensor:
    """The samples become groups of one convolution."""
    n, kernels = x.shape[0], _kernels(weight, gain, window.groups)
    folded = window._replace(groups=n * window.groups)
    return F.conv2d(x.flatten(0, 1)[None], kernels.flatten(0, 1), None, *folded)[0].unflatten(0, (n, -1))


def _loop(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> Tensor:
    """A convolution for each sample."""
    samples = zip(x.split(1), gain.split(1), strict=True)
    return torch.cat([F.conv2d(a, _kernels(weight, b, window.groups)[0], None, *window) for a, b in samples])


def _per_sample(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> Tensor:
    """The definition. A loop, but folded on a GPU, under torch.compile, and for depthwise kernels on contiguous x."""
    folds = x.device.type != "cpu" or torch.compiler.is_compiling()
    folds = folds or (_is_depthwise(weight, window) and x.is_contiguous())
    return (_folded if folds and x.shape[0] > 1 else _loop)(x, weight, gain, window)


def _taps(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> Tensor:
    """The sum over taps of 1x1 convolutions with gated outputs or gated inputs; the sum in float32 or wider."""
    depthwise, on_output = _is_depthwise(weight, window), gain.shape[3] == 1
    if gain.shape[1:4] != (1, 1, 1):  # one number for each channel of the gated side
        outputs, inputs = (weight.shape[0] // window.groups, 1) if on_output else (1, weight.shape[1])
        gain = gain.expand(-1, window.groups, outputs, inputs, -1, -1)
    gain = gain.flatten(1, 3)
    if gain.shape[2:] == (1, 1):  # constant over the taps
        if on_output:
            y = F.conv2d(x, weight, None, *window)
            return y * gain.to(y.dtype)
        return F.conv2d(x * gain.to(x.dtype), weight, None, *window)
    gain = gain.to(torch.promote_types(gain.dtype, torch.float32))
    x = F.pad(x, (window.padding[1], window.padding[1], window.padding[0], window.padding[0]))
    (down, right), (dy, dx), (h, w) = window.stride, window.dilation, weight.shape[2:]
    total, dtype = None, x.dtype
    for i in range(h):
        for j in range(w):
            bottom, end = x.shape[2] - (h - 1 - i) * dy, x.shape[3] - (w - 1 - j) * dx
            seen = x[:, :, i * dy : bottom : down, j * dx : end : right]
            tap, gate = weight[:, :, i, j, None, None], gain[:, :, i, j, None, None]
            if depthwise:
                term = seen * (tap[:, 0] * gate)
            elif on_output:
                product = F.conv2d(seen, tap, groups=window.groups)
                term, dtype = product * gate, product.dtype
            else:
                term = F.conv2d((seen * gate).to(x.dtype), tap, groups=window.groups)
                term, dtype = term.to(gain.dtype), term.dtype
            total = term if total is None else total + term
    assert total is not None
    return total.to(dtype)


def _unfolded(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> Tensor:
    """Matrix products of the kernels with the patches: any gain, and a batch whose size isn't known."""
    rows, columns = window.output_size(x, weight)
    patches = F.unfold(x, weight.shape[2:], window.dilation, window.padding, window.stride)
    kernels = (weight.unflatten(0, (window.groups, -1)) * gain).flatten(3)
    y = kernels @ patches.unflatten(1, (window.groups, -1))
    return y.flatten(1, 2).unflatten(2, (rows, columns))


def _fused(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> Tensor:
    """By the native core on a CPU, by Triton on a GPU, where they can; else the definition."""
    if x.is_cuda:
        from leanconv.nn import aw_triton  # here: it needs Window

        if aw_triton.AVAILABLE and x.shape[0] > 0 and {x.dtype, weight.dtype} <= set(aw_triton.DTYPES):
            return aw_triton.gated_conv2d_cuda(x, weight, gain, window)
    return (fused if supports(x, weight, gain, window) else _per_sample)(x, weight, gain, window)


IMPLEMENTATIONS: dict[str, Form] = {"per_sample": _per_sample, "taps": _taps, "fused": _fused}


def _fused_wins(x: Tensor, weight: Tensor, window: Window) -> bool:
    """On a CPU it does, but where a vector of channels would be mostly empty, and for depthwise kernels on planes."""
    if _is_depthwise(weight, window):
        return not x.is_contiguous()
    return window.groups == 1 or min(weight.shape[0] // window.groups, weight.shape[1]) >= SMALL_GROUP


def choose(x: Tensor, weight: Tensor, gain: Tensor, window: Window) -> str:
    """What ``impl="auto"`` computes: the name of an implementation.

    On a CPU, ``"fused"`` in float32 and bfloat16, unless the channels of a group are fewer than :data:`SMALL_GROUP`, or
    the convolution is depthwise and x is contiguous (not channels_last). Otherwise: ``"per_sample"`` where no channels
    share the gain. Else ``"taps"`` where the gain is constant over the taps (one convolution, its input or output
    scaled), and where there are several samples and fewer than :data:`FEW_POSITIONS` output positions, unless the
    convolution is depthwise. Else ``"per_sample"``.

    >>> x, weight, gain = torch.empty(8, 4, 9, 9), torch.empty(4, 4, 3, 3), torch.empty(8, 1, 4, 1, 3, 3)
    >>> choose(x.to("meta"), weight.to("meta"), gain.to("meta"), Window())
    'taps'
    """
    if supports(x, weight, gain, window) and _fused_wins(x, weight, window):
        return "fused"
    if gain.shape[2] != 1 and gain.shape[3] != 1:
        return "per_sample"
    if gain.shape[4:] == (1, 1):
        return "taps"
    rows, columns = window.output_size(x, weight)
    few = x.shape[0] > 1 and rows * columns < FEW_POSITIONS and not _is_depthwise(weight, window)
    return "taps" if few else "per_sample"


def gated_conv2d(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: tuple[int, int, int, int],
    dilation: Pair,
    groups: int,
    impl: str = "auto",
) -> Tensor:
    """``y[n] = conv2d(x[n], weight * gain[n]) + bias``.

    Args:
        x: [N, C1, H, W]. weight: [C2, C1 / groups, h, w]. bias: [C2] or None.
        gain: [N, g, O, I, h, w], each axis but the first possibly 1 (module docstring).
        padding: zeros (top, left, bottom, right).
        impl: ``"auto"`` or a key of :data:`IMPLEMENTATIONS`. Under export, a form that doesn't fix the batch instead.
            ``"fused"`` computes in float32 or bfloat16 on a CPU, and is the definition elsewhere.

    Shapes: -> [N, C2, H', W'], in the memory format of x.

    >>> x, weight = torch.randn(2, 4, 5, 5), torch.randn(8, 4, 3, 3)
    >>> gain = torch.rand(2, 1, 8, 1, 3, 3)
    >>> y = gated_conv2d(x, weight, gain, None, (1, 1), (0, 0, 0, 0), (1, 1), 1)
    >>> torch.allclose(y[1:], F.conv2d(x[1:], weight * gain[1, 0]), atol=1e-5)
    True
    """
    top, left, bottom, right = padding
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    window = Window(stride, (top, left), dilation, groups)
    if is_exporting():
        form = _unfolded if gain.shape[2] != 1 and gain.shape[3] != 1 else _taps
        y = form(x, weight, gain, window)
    elif x.shape[0] == 0:  # the gain has a part in the graph, so that its parameters get gradients of zero
        y = F.conv2d(x, weight, None, *window)
        y = y + gain.sum().to(y.dtype)
    else:
        y = IMPLEMENTATIONS[choose(x, weight, gain, window) if impl == "auto" else impl](x, weight, gain, window)
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            y = y.contiguous(memory_format=torch.channels_last)
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)
