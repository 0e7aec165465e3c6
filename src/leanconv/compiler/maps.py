"""Handlers of operators that make a new map (convolutions, dense layers, pools, joins) or only reshape one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from leanconv.compiler.elementwise import _parameters
from leanconv.compiler.graph import Map, Node, Stack, engine_size, same
from leanconv.compiler.lower import Const, Lowering, fixed_engine_size, lowers
from leanconv.program import pack_bits

RESHAPES = "only flattening of everything after the batch, and adding or removing 1x1 dimensions, can be lowered"


def _pair(values: int | Sequence[int], rank: int, one_dimensional: int) -> list[int]:
    """[height, width] from an argument of a 1-d or 2-d operator; `one_dimensional` stands for the height of a 1-d
    one."""
    listed = [values] if isinstance(values, int) else list(values)
    if rank == 3:
        return [one_dimensional, listed[0]]
    return listed * 2 if len(listed) == 1 else listed


def _taps(weight: np.ndarray) -> np.ndarray:
    """A convolution weight [O, I, kh, kw] or [O, I, k] as [O, kh, kw, I]."""
    if weight.ndim == 3:
        weight = weight[:, :, None]
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1))


# ------------------------------------------------------------------------------------------------- real-valued layers


def _convolution(
    c: Lowering, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Map:
    x, filters = c.real(input), c.weight(weight)
    rank = len(x.shape)
    if rank != filters.ndim:
        c.refuse("an input without batch dimension", "add the batch dimension in front")
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(_pair(dilation, rank, 1), _pair(filters.shape[2:], rank, 1), strict=True)]
        before = [t // 2 for t in total]
        pads = [*before, *(t - b for t, b in zip(total, before, strict=True))]
    elif padding == "valid":
        pads = [0, 0, 0, 0]
    else:
        pads = _pair(padding, rank, 0) * 2
    return _real_convolution(c, "conv", [x], filters, weight, bias, stride, pads, dilation, groups=groups)


def _real_convolution(
    c: Lowering,
    kind: str,
    inputs: list[Map],
    filters: np.ndarray,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: list[int],
    dilation: Any,
    **attrs: Any,
) -> Map:
    """`padding`: top, left, bottom, right."""
    rank, outputs = filters.ndim, filters.shape[0]
    attrs = {
        "in_channels": inputs[0].node.channels,
        "out_channels": outputs,
        "kernel": _pair(filters.shape[2:], rank, 1),
        "stride": _pair(stride, rank, 1),
        "padding": padding,
        "dilation": _pair(dilation, rank, 1),
        **attrs,
    }
    nodes, tensors = [x.node for x in inputs], {"weight": _taps(filters)}
    node = c.node(kind, nodes, outputs, attrs=attrs, tensors=tensors, parameters=_parameters(weight))
    return c.result(_with_bias(c, node, None, bias))


def _with_bias(c: Lowering, node: Node, scale: np.ndarray | None, bias: Any) -> Node:
    shift = None if bias is None else c.weight(bias, "bias")
    return c.affine(node, scale, shift, _parameters(bias))


@lowers("aten.conv2d.default", "aten.conv2d.padding", "aten.conv1d.default", "aten.conv1d.padding")
def conv(c: Lowering, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Map:
    return _convolution(c, input, weight, bias, stride, padding, dilation, groups)


GAINS = {"in": "output", "out": "input", "taps": "tap", "none": "weight"}  # what a share of AWConv2d leaves different


@lowers("leanconv.gated_conv.default")
def gated_conv(
    c: Lowering,
    input: Any,
    gain: Any,
    weight: Any,
    bias: Any,
    share: str,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Map:
    maps, filters = [c.real(input), c.real(gain, "gain")], c.weight(weight)
    window = (stride, list(padding), dilation)
    return _real_convolution(c, "gated_conv", maps, filters, weight, bias, *window, groups=groups, gain=GAINS[share])


@lowers("leanconv.windowed_conv.default")
def windowed_conv(
    c: Lowering, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, sets: int, shift: int
) -> Map:
    x, filters = c.real(input), c.weight(weight)
    read = filters.shape[1]
    size = (filters, weight, bias, stride, list(padding), dilation)
    if read * sets == x.node.channels and (sets == 1 or shift % x.node.channels == read):
        return _real_convolution(c, "conv", [x], *size, groups=sets)
    return _real_convolution(c, "windowed_conv", [x], *size, groups=sets, window=read, shift=shift)


@lowers("aten.linear.default")
def linear(c: Lowering, input: Any, weight: Any, bias: Any) -> Map:
    x, filters = c.real(input), c.weight(weight)
    _dense_only(c, x)
    attrs = {"in_channels": filters.shape[1], "out_channels": filters.shape[0]}
    tensors = {"weight": filters}
    node = c.node("linear", [x.node], filters.shape[0], attrs=attrs, tensors=tensors, parameters=_parameters(weight))
    return c.result(_with_bias(c, node, None, bias))


def _dense_only(c: Lowering, x: Map) -> None:
    if len(x.shape) != 2:
        c.refuse(
            f"a dense layer on an input of {len(x.shape)} dimensions",
            "flatten it to N,C first, or use a 1x1 convolution",
        )


# ------------------------------------------------------------------------------------------------------ binary layers


def _signs(c: Lowering, value: Any) -> Map:
    if isinstance(value, Map) and value.node.kind == "sign":
        return value
    c.refuse(
        "the input of a binary layer does not come from a sign",
        "put an activation binariser of leanconv.nn in front (binarize_input=...)",
    )


def _scale(c: Lowering, weight: Const, kind: str, transposed: bool = False, groups: int = 1) -> np.ndarray | None:
    from leanconv.nn.binarize import weight_scale

    scale = weight_scale(weight.tensor.detach(), kind, transposed=transposed, groups=groups)
    return None if scale is None else scale.cpu().numpy().astype(np.float64)


def _binary(c: Lowering, kind: str, x: Map, taps: np.ndarray, attrs: dict[str, Any], scale: Any, bias: Any) -> Map:
    """`taps`: latent weights as [out, kh, kw, in/groups]."""
    attrs = {"in_channels": x.node.channels, "out_channels": len(taps), "kernel": list(taps.shape[1:3]), **attrs}
    node = c.node(kind, [x.node], len(taps), attrs=attrs, tensors={"weight": pack_bits(taps >= 0)})
    return c.result(_with_bias(c, node, scale, bias))


@lowers("leanconv.binary_conv.default")
def binary_conv(
    c: Lowering,
    input: Any,
    weight: Any,
    bias: Any,
    weight_binarizer: str,
    stride: Any,
    padding: Any,
    pad_value: int,
    dilation: Any,
    groups: int,
) -> Map:
    x, latent = _signs(c, input), c.weight(weight)
    rank = len(x.shape)
    attrs = {
        "stride": _pair(stride, rank, 1),
        "padding": list(padding) if rank == 4 else [0, padding[0], 0, padding[1]],
        "pad_value": pad_value,
        "dilation": _pair(dilation, rank, 1),
        "groups": groups,
    }
    return _binary(c, "binary_conv", x, _taps(latent), attrs, _scale(c, weight, weight_binarizer), bias)


@lowers("leanconv.binary_conv_transpose.default")
def binary_conv_transpose(
    c: Lowering,
    input: Any,
    weight: Any,
    bias: Any,
    weight_binarizer: str,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> Map:
    x, latent = _signs(c, input), c.weight(weight)
    rank = len(x.shape)
    if rank == 3:
        latent = latent[:, :, None]
    inputs, outputs, *kernel = latent.shape
    taps = latent.reshape(groups, inputs // groups, outputs, *kernel).transpose(0, 2, 3, 4, 1)
    attrs = {
        "stride": _pair(stride, rank, 1),
        "padding": _pair(padding, rank, 0),
        "output_padding": _pair(output_padding, rank, 0),
        "dilation": _pair(dilation, rank, 1),
        "groups": groups,
    }
    scale = _scale(c, weight, weight_binarizer, transposed=True, groups=groups)
    return _binary(c, "binary_conv_transpose", x, taps.reshape(-1, *taps.shape[2:]), attrs, scale, bias)


@lowers("leanconv.binary_linear.default")
def binary_linear(c: Lowering, input: Any, weight: Any, bias: Any, weight_binarizer: str) -> Map:
    x, latent = _signs(c, input), c.weight(weight)
    _dense_only(c, x)
    attrs = {"stride": [1, 1], "padding": [0, 0, 0, 0], "pad_value": 0, "dilation": [1, 1], "groups": 1}
    return _binary(c, "binary_conv", x, latent[:, None, None], attrs, _scale(c, weight, weight_binarizer), bias)


# -------------------------------------------------------------------------------------------------------------- pools


def _pool(c: Lowering, kind: str, x: Map, attrs: dict[str, Any]) -> Map:
    return c.result(c.node(kind, [x.node], x.node.channels, attrs=attrs))


@lowers("aten.max_pool2d.default", "aten.max_pool1d.default")
def max_pool(c: Lowering, x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Map:
    signs = isinstance(x, Map) and x.node.kind == "sign"
    before = Map(x.node.inputs[0], x.shape) if signs else c.real(x)
    rank = len(before.shape)
    attrs = {
        "kernel": _pair(kernel_size, rank, 1),
        "stride": _pair(stride or kernel_size, rank, 1),
        "padding": _pair(padding, rank, 0),
        "dilation": _pair(dilation, rank, 1),
        "ceil_mode": ceil_mode,
    }
    pooled = _pool(c, "max_pool", before, attrs)
    return c.result(c.sign(pooled.node)) if signs else pooled  # the sign is monotone, so it may come after the maximum


@lowers("aten.avg_pool2d.default", "aten.avg_pool1d.default")
def avg_pool(
    c: Lowering,
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> Map:
    if divisor_override is not None:
        c.refuse("average pooling with divisor_override", "leave divisor_override out")
    before = c.real(x)
    rank = len(before.shape)
    attrs = {
        "kernel": _pair(kernel_size, rank, 1),
        "stride": _pair(stride or kernel_size, rank, 1),
        "padding": _pair(padding, rank, 0),
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
    }
    return _pool(c, "avg_pool", before, attrs)


@lowers("aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool1d.default")
def adaptive_avg_pool(c: Lowering, x: Any, output_size: Any) -> Map:
    before = c.real(x)
    if all(isinstance(s, int) and s == 1 for s in output_size):
        return _pool(c, "global_avg_pool", before, {})
    rows, columns = _pair(output_size, len(before.shape), 1)
    return _pool(c, "adaptive_avg_pool", before, {"height": rows, "width": columns})


@lowers("aten.mean.dim")
def mean(c: Lowering, x: Any, dim: Any, keepdim: bool, dtype: Any) -> Map:
    if dtype not in (None, torch.float32):
        c.refuse(f"a mean in {dtype}", "average in float32")
    if isinstance(x, Stack):
        return _join(c, x, dim, keepdim)
    before = c.real(x)
    rank = len(before.shape)
    dims = sorted({d % rank for d in (dim if dim is not None else range(rank))})
    if rank == 2 or dims != list(range(2, rank)):
        c.refuse(f"a mean over dimensions {dims} of {rank}", "average over all dimensions after the channels")
    return _pool(c, "global_avg_pool", before, {})


# --------------------------------------------------------------------------------------------------- joins and shapes


@lowers("aten.stack.default")
def stack(c: Lowering, tensors: Any, dim: int) -> Stack:
    maps = [c.real(t) for t in tensors]
    return Stack(maps, dim % (len(maps[0].shape) + 1))


def _join(c: Lowering, x: Stack, dim: Any, keepdim: bool) -> Map:
    rank = len(x.maps[0].shape) + 1
    if keepdim or dim is None or [d % rank for d in dim] != [x.dim]:
        c.refuse("stacked maps can only be averaged over the new dimension", "use torch.stack([...], d).mean(d)")
    total = x.maps[0].node
    for other in x.maps[1:]:
        total = c.node("add", [total, other.node], total.channels, attrs={"same_size": True})
    return c.result(c.affine(total, scale=1 / len(x.maps)))


@lowers("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(c: Lowering, tensors: Any, dim: int) -> Map:
    maps = [t for t in tensors if isinstance(t, Map)]
    if len(maps) != len(tensors):
        c.refuse("a constant is concatenated with a map", "concatenate maps of the network only")
    if dim % len(maps[0].shape) != 1:
        c.refuse(f"a concatenation along dimension {dim}", "only channels (dimension 1) can be concatenated")
    signs = all(m.node.kind == "sign" for m in maps)
    nodes = [m.node.inputs[0] if signs else c.real(m).node for m in maps]
    if len(nodes) == 1:
        return c.result(maps[0].node)
    joined = c.node("concat", nodes, sum(n.channels for n in nodes))
    return c.result(c.sign(joined) if signs else joined)


def _same_value(c: Lowering, x: Any) -> Map | Stack:
    return x if isinstance(x, Stack) else Map(x.node, c.shape)


@lowers(
    "aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default", "aten.detach_.default"
)
def copy(c: Lowering, x: Any, memory_format: Any = None) -> Map | Stack:
    return _same_value(c, x)


@lowers("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
def dropout(c: Lowering, input: Any, p: float, train: bool) -> Map | Stack:
    if train and p > 0:
        c.refuse(
            "dropout is active", "use nn.Dropout or F.dropout(x, p, self.training), so that eval mode turns it off"
        )
    return _same_value(c, input)


@lowers("aten.to.dtype", "aten.to.device", "aten.to.dtype_layout")
def to(c: Lowering, x: Any, dtype: Any = None, **others: Any) -> Map | Stack:
    if dtype not in (None, torch.float32):
        c.refuse(f"a conversion to {dtype}", "compute in float32")
    return _same_value(c, x)


@lowers("aten.slice.Tensor")
def slice_all(c: Lowering, x: Any, dim: int, start: Any, end: Any, step: int) -> Map:
    """A slice that takes everything, as in x[:, :, None, None]; any other is refused."""
    if not isinstance(x, Map) or start not in (None, 0) or step != 1 or end is None or end < 2**62:
        c.refuse("a part of a map is cut out", "compute only the part that is needed")
    return Map(x.node, c.shape)


@lowers(
    "aten.flatten.using_ints",
    "aten.view.default",
    "aten.reshape.default",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze.default",
)
def reshape(c: Lowering, x: Any, **arguments: Any) -> Map:
    """Any change of shape that leaves the numbers in channel-major order: an alias, or one `flatten`."""
    if not isinstance(x, Map):
        _refuse_reshape(c)
    shape = c.shape
    if len(shape) < 2 or len(shape) > 4 or not same(shape[0], x.shape[0]):
        _refuse_reshape(c)
    before, after = engine_size(x.shape), engine_size(shape)
    if same(shape[1], x.shape[1]) and same(before, after):
        return Map(x.node, shape)
    if not same(after, (1, 1)):
        _refuse_reshape(c)
    height, width = fixed_engine_size(c, x.shape, "flattening")
    if shape[1] != x.node.channels * height * width:
        _refuse_reshape(c)
    signs = x.node.kind == "sign"
    attrs = {"height": height, "width": width}
    flat = c.node("flatten", [x.node.inputs[0] if signs else x.node], int(shape[1]), attrs=attrs)
    return c.result(c.sign(flat) if signs else flat)


def _refuse_reshape(c: Lowering) -> NoReturn:
    c.refuse("this change of shape cannot be lowered", RESHAPES)
