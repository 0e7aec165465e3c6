"""Handlers of elementwise operators: they become steps of the operator that makes their input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from leanconv.compiler.graph import Map, Node, Stack
from leanconv.compiler.lower import Const, Lowering, lowers

NO_BROADCAST = "a constant must be one number or one number a channel, and a map the same size or 1x1"


def _per_channel(c: Lowering, value: Any, x: Map) -> np.ndarray | float:
    """A number, or a constant that broadcasts over the channels of x, in float64."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Const):
        c.refuse(f"an operand of type {type(value).__name__}", NO_BROADCAST)
    array = value.array()
    shape = (1,) * (len(x.shape) - array.ndim) + array.shape
    if (
        array.ndim > len(x.shape)
        or any(s != 1 for d, s in enumerate(shape) if d != 1)
        or shape[1] not in (1, x.shape[1])
    ):
        c.refuse(
            f"a constant of shape {list(array.shape)} does not broadcast over the channels of its map", NO_BROADCAST
        )
    if not np.isfinite(array).all():
        c.refuse("a constant operand holds NaN or infinity", "train the network again; this checkpoint is broken")
    return array.reshape(-1)


def _parameters(value: Any) -> frozenset[str]:
    return value.parameters if isinstance(value, Const) else frozenset()


def _combine(c: Lowering, kind: str, a: Map, b: Map) -> Map:
    """`a + b` or `a * b` for two maps: the first operand of the node has the full size."""

    def is_point(m: Map) -> bool:
        return all(isinstance(s, int) and s == 1 for s in m.shape[2:])

    if len(a.shape) != len(b.shape) or a.node.channels != b.node.channels:
        c.refuse(
            f"maps of shapes {[str(s) for s in a.shape]} and {[str(s) for s in b.shape]} are combined", NO_BROADCAST
        )
    if is_point(a) and not is_point(b):
        a, b = b, a
    for p, q in zip(a.shape[2:], b.shape[2:], strict=True):
        if not is_point(b) and (isinstance(p, int) and p == 1) != (isinstance(q, int) and q == 1):
            c.refuse(
                f"maps of shapes {[str(s) for s in a.shape]} and {[str(s) for s in b.shape]} are combined", NO_BROADCAST
            )
    same_size = is_point(a) or not is_point(b)
    return c.result(c.node(kind, [a.node, b.node], a.node.channels, attrs={"same_size": same_size}))


def _weighted_sum(c: Lowering, x: Any, other: Any, alpha: float) -> Map:
    """``x + alpha * other``."""
    if isinstance(x, Map) and isinstance(other, Map):
        a, b = c.real(x), c.real(other)
        scaled = c.affine(b.node, scale=alpha)
        return _combine(c, "add", a, Map(scaled, b.shape))
    if isinstance(x, (Map, Stack)):
        a = c.real(x)
        bias = np.asarray(_per_channel(c, other, a)) * alpha
        return c.result(c.affine(a.node, bias=bias, parameters=_parameters(other)))
    b = c.real(other)
    return c.result(c.affine(b.node, scale=alpha, bias=_per_channel(c, x, b), parameters=_parameters(x)))


@lowers("aten.add.Tensor", "aten.add_.Tensor", "aten.add.Scalar", "aten.add_.Scalar")
def add(c: Lowering, x: Any, other: Any, alpha: float = 1) -> Map:
    return _weighted_sum(c, x, other, alpha)


@lowers("aten.sub.Tensor", "aten.sub_.Tensor", "aten.sub.Scalar", "aten.sub_.Scalar")
def sub(c: Lowering, x: Any, other: Any, alpha: float = 1) -> Map:
    return _weighted_sum(c, x, other, -alpha)


@lowers("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(c: Lowering, x: Any, other: Any, alpha: float = 1) -> Map:
    return _weighted_sum(c, other, x, -alpha)


@lowers("aten.neg.default", "aten.neg_.default")
def neg(c: Lowering, x: Any) -> Map:
    return c.result(c.affine(c.real(x).node, scale=-1.0))


@lowers("aten.mul.Tensor", "aten.mul_.Tensor", "aten.mul.Scalar", "aten.mul_.Scalar")
def mul(c: Lowering, x: Any, other: Any) -> Map:
    if isinstance(x, Map) and isinstance(other, Map):
        return _combine(c, "mul", c.real(x), c.real(other))
    if not isinstance(x, (Map, Stack)):
        x, other = other, x
    a = c.real(x)
    return c.result(c.affine(a.node, scale=_per_channel(c, other, a), parameters=_parameters(other)))


@lowers("aten.div.Tensor", "aten.div_.Tensor", "aten.div.Scalar", "aten.div_.Scalar")
def div(c: Lowering, x: Any, other: Any) -> Map:
    if isinstance(other, (Map, Stack)):
        c.refuse("it divides by a map", "divide by numbers or parameters only")
    a = c.real(x)
    divisor = np.asarray(_per_channel(c, other, a))
    if np.any(divisor == 0):
        c.refuse("it divides by zero", "divide by something else")
    return c.result(c.affine(a.node, scale=1 / divisor, parameters=_parameters(other)))


@lowers("aten.batch_norm.default")
def batch_norm(
    c: Lowering,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Map:
    x = c.real(input)
    if training or running_mean is None:
        c.refuse(
            "it normalises with the statistics of the batch (training mode, or track_running_stats=False)",
            "train with track_running_stats=True and compile the model in eval mode",
        )
    mean, variance = c.weight(running_mean, "running mean"), c.weight(running_var, "running variance")
    scale = 1 / np.sqrt(variance.astype(np.float64) + eps)
    if weight is not None:
        scale = scale * c.weight(weight)
    shift = -mean.astype(np.float64) * scale
    if bias is not None:
        shift = shift + c.weight(bias, "bias")
    return c.result(c.affine(x.node, scale, shift, _parameters(weight) | _parameters(bias)))


def _clip(c: Lowering, x: Any, low: Any, high: Any) -> Map:
    node = c.real(x).node
    limits = []
    for limit in (low, high):
        if not (limit is None or isinstance(limit, (int, float))):
            c.refuse("a limit that is no number", "clamp with numbers")
        limits.append(None if limit is None or math.isinf(limit) else float(limit))
    return c.result(c.node("clip", [node], node.channels, attrs={"min": limits[0], "max": limits[1]}))


@lowers("aten.relu.default", "aten.relu_.default")
def relu(c: Lowering, x: Any) -> Map:
    return _clip(c, x, 0.0, None)


@lowers("aten.relu6.default", "aten.relu6_.default")
def relu6(c: Lowering, x: Any) -> Map:
    return _clip(c, x, 0.0, 6.0)


@lowers("aten.hardtanh.default", "aten.hardtanh_.default")
def hardtanh(c: Lowering, x: Any, min_val: Any, max_val: Any) -> Map:
    return _clip(c, x, min_val, max_val)


@lowers("aten.clamp.default", "aten.clamp_.default")
def clamp(c: Lowering, x: Any, min: Any, max: Any) -> Map:
    return _clip(c, x, min, max)


@lowers("aten.clamp_min.default", "aten.clamp_min_.default")
def clamp_min(c: Lowering, x: Any, min: Any) -> Map:
    return _clip(c, x, min, None)


@lowers("aten.clamp_max.default", "aten.clamp_max_.default")
def clamp_max(c: Lowering, x: Any, max: Any) -> Map:
    return _clip(c, x, None, max)


def _slope(c: Lowering, x: Map, slope: Any, parameters: frozenset[str]) -> Map:
    vector = np.broadcast_to(np.asarray(slope, np.float64), (x.node.channels,))
    tensors = {"slope": vector}
    return c.result(c.node("prelu", [x.node], x.node.channels, tensors=tensors, parameters=parameters))


@lowers("aten.prelu.default")
def prelu(c: Lowering, x: Any, weight: Any) -> Map:
    return _slope(c, c.real(x), c.weight(weight).reshape(-1), _parameters(weight))


@lowers("aten.leaky_relu.default", "aten.leaky_relu_.default")
def leaky_relu(c: Lowering, x: Any, negative_slope: float) -> Map:
    return _slope(c, c.real(x), negative_slope, frozenset())


def _function(kind: str) -> Any:
    def handler(c: Lowering, x: Any) -> Map:
        node: Node = c.real(x).node
        return c.result(c.node(kind, [node], node.channels))

    return handler


for _kind, _name in (
    ("sigmoid", "sigmoid"),
    ("silu", "silu"),
    ("hard_sigmoid", "hardsigmoid"),
    ("hard_swish", "hardswish"),
):
    lowers(f"aten.{_name}.default", f"aten.{_name}_.default")(_function(_kind))


@lowers("leanconv.sign.default")
def sign(c: Lowering, x: Any) -> Map:
    if isinstance(x, Map) and x.node.kind == "sign":
        return c.result(x.node)
    return c.result(c.sign(c.real(x).node))
