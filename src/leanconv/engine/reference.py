"""The oracle: a slow numpy interpreter of a Program that follows docs/format.md line by line.

Binary and int8 convolutions are exact integers. Real-valued sums (convolutions, dense layers, average pools) are taken
in float64 and rounded once, so that any float32 order of summation can be compared with them. Steps are float32 with
one rounding an operation (a scale with a bias is one operation), in the stated order: given equal inputs, a native
epilogue must give the same bits.

Maps are NHWC here: real values float32 (those of bf16 rounded where they are stored), bits int8 with +-1, bytes uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from leanconv.program import (
    WRITING_STEPS,
    Input,
    Op,
    Program,
    ProgramError,
    Step,
    infer_sizes,
    output_size,
    round_bf16,
    unpack_bits,
    zero_points,
)

Map = np.ndarray


def run(program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of `program` on `inputs`, both in their outside layout (see :func:`to_map`), in the program's order.

    Raises ProgramError for inputs of the wrong number, shape or type.
    """
    values = run_values(program, inputs)
    return [from_map(values[o.value], o.dims) for o in program.outputs]


def run_values(program: Program, inputs: Sequence[np.ndarray]) -> list[Map]:
    """Every value of `program`, by value number: NHWC float32, int8 +-1 or uint8."""
    if len(inputs) != len(program.inputs):
        raise ProgramError(f"the network has {len(program.inputs)} inputs, got {len(inputs)}")
    values: list[Map | None] = [None] * len(program.values)
    for description, array in zip(program.inputs, inputs, strict=True):
        values[description.value] = input_map(program, description, array)
    infer_sizes(program, {i.value: _size(values[i.value]) for i in program.inputs})
    for op in program.ops:
        run_op(program, op, values)
    return [v if v is not None else np.zeros((0, 0, 0, 0), np.float32) for v in values]


def input_map(program: Program, description: Input, array: np.ndarray) -> Map:
    """An input as its value: see :func:`to_map`; a value of bytes takes the pictures' bytes as they are."""
    array = np.asarray(array)
    if program.values[description.value].type != "bytes":
        return to_map(description, array, program.preprocessing)
    expected = (description.height, description.width, description.channels)
    if array.dtype != np.uint8 or array.ndim != 4:
        raise ProgramError(
            f"input {description.name}: the first layer computes in int8, so expected are uint8 pictures N,H,W,C, got "
            f"{array.dtype} {array.shape}"
        )
    if any(e not in (None, g) for e, g in zip(expected, array.shape[1:], strict=True)):
        raise ProgramError(f"input {description.name}: expected height, width, channels {expected}, got {array.shape}")
    return np.ascontiguousarray(array)


def to_map(description: Input, array: np.ndarray, preprocessing: dict[str, Any] | None = None) -> Map:
    """An input as NHWC float32, from float32 N,C,H,W / N,C,L / N,C (by `dims`) or uint8 pictures N,H,W,C."""
    array = np.asarray(array)
    if array.dtype == np.uint8 and description.dims == 4:
        picture = normalise(array, preprocessing)
    elif array.dtype == np.float32 and array.ndim == description.dims:
        picture = {
            4: lambda a: a.transpose(0, 2, 3, 1),
            3: lambda a: a.transpose(0, 2, 1)[:, None],
            2: lambda a: a[:, None, None],
        }[description.dims](array)
    else:
        layout = {4: "N,C,H,W", 3: "N,C,L", 2: "N,C"}[description.dims]
        raise ProgramError(f"input {description.name}: expected float32 {layout}, got {array.dtype} {array.shape}")
    expected = (description.height, description.width, description.channels)
    if picture.ndim != 4 or any(e not in (None, g) for e, g in zip(expected, picture.shape[1:], strict=True)):
        raise ProgramError(f"input {description.name}: expected height, width, channels {expected}, got {array.shape}")
    return np.ascontiguousarray(picture)


def from_map(value: Map, dims: int) -> np.ndarray:
    """A real NHWC map in its outside layout."""
    if dims == 4:
        return np.ascontiguousarray(value.transpose(0, 3, 1, 2))
    if dims == 3:
        return np.ascontiguousarray(value[:, 0].transpose(0, 2, 1))
    return np.ascontiguousarray(value[:, 0, 0])


def normalise(pictures: np.ndarray, preprocessing: dict[str, Any] | None) -> np.ndarray:
    """uint8 pictures N,H,W,C as the network sees them: ``(u / 255 - mean) / std``, every operation rounded."""
    if preprocessing is None:
        raise ProgramError("this network names no preprocessing, so it takes float32 inputs, not uint8 pictures")
    mean = np.asarray(preprocessing["mean"], np.float32)
    std = np.asarray(preprocessing["std"], np.float32)
    return (pictures.astype(np.float32) / np.float32(255) - mean) / std


@dataclass
class Trace:
    """What an operator computes besides the values it writes."""

    head: Map | None = None  # its result before the steps
    before_sign: dict[int, Map] = field(default_factory=dict)  # by bits value: what the sign is taken of


def run_op(program: Program, op: Op, values: list[Map | None], trace: Trace | None = None) -> None:
    """Run one operator with its steps: reads its inputs from `values` and writes what it produces there."""
    inputs = []
    for number in op.inputs:
        value = values[number]
        if value is None:
            raise ProgramError(f"{op.name}: value {number} is read before it is written")
        if program.values[number].type == "bytes":
            value = value.astype(np.int32) - zero_points(program.values[number])
        inputs.append(value)
    x = _OPERATORS[op.kind](op, inputs, {role: program.tensors[name] for role, name in op.tensors.items()})
    if trace is not None:
        trace.head = x
    if op.output is not None:
        values[op.output] = x
    for step in op.steps:
        if trace is not None and step.kind == "sign" and step.value is not None:
            trace.before_sign[step.value] = _scaled(program, step, x)
        x = _step(program, step, x, values)


# ----------------------------------------------------------------------------------------------------------- operators


def _size(value: Map | None) -> tuple[int, int]:
    assert value is not None
    return value.shape[1], value.shape[2]


def _tap(padded: Map, tap: tuple[int, int], out: tuple[int, int], op: Op) -> Map:
    """The pixels of an already padded map that kernel position `tap` meets, one for each output pixel."""
    (y, x), (dy, dx), (sy, sx) = tap, op.attrs.get("dilation", [1, 1]), op.attrs["stride"]
    y, x = y * dy, x * dx
    return padded[:, y : y + (out[0] - 1) * sy + 1 : sy, x : x + (out[1] - 1) * sx + 1 : sx]


def _convolve(op: Op, picture: Map, weight: np.ndarray, pad_value: float, dtype: Any) -> np.ndarray:
    """The sum over taps in `dtype`. weight: [out, kh, kw, in/groups] (windowed_conv: [out, kh, kw, window])."""
    a = op.attrs
    out, groups = output_size(op, _size(picture)), a["groups"]
    outs, ins = a["out_channels"] // groups, weight.shape[-1]
    top, left, bottom, right = a["padding"]
    padded = np.pad(picture, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=pad_value)
    padded = padded.astype(dtype)
    taps = [_tap(padded, tap, out, op) for tap in np.ndindex(*a["kernel"])]
    columns = np.stack(taps, axis=3)  # batch, height, width, tap, channel
    filters = weight.reshape(a["out_channels"], len(taps), -1).astype(dtype)
    total = np.zeros((len(picture), *out, a["out_channels"]), dtype)
    for g in range(groups):
        read = (g * int(a.get("shift") or ins) + np.arange(ins)) % a["in_channels"]
        group = columns[..., read].reshape(-1, len(taps) * ins)
        product = group @ filters[g * outs : (g + 1) * outs].reshape(outs, -1).T
        total[..., g * outs : (g + 1) * outs] = product.reshape(len(picture), *out, outs)
    return total


def _unpacked(op: Op, tensors: dict[str, np.ndarray]) -> np.ndarray:
    return unpack_bits(tensors["weight"], op.attrs["in_channels"] // op.attrs["groups"])


def _binary_conv(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    weight = _unpacked(op, tensors)
    # Sums of +-1 are exact in float32 up to 2^24 terms, and float products are quick where integer ones are not.
    dtype = np.float32 if weight[0].size <= 2**24 else np.float64
    return _convolve(op, inputs[0], weight, op.attrs["pad_value"], dtype).astype(np.float32)


def _conv(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    return _convolve(op, inputs[0], tensors["weight"], 0.0, np.float64).astype(np.float32)


def _int8_conv(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    # `inputs`: bytes minus zero points. Integers below 2^53 are exact in float64.
    groups = {**op.attrs, "groups": 1}
    total = _convolve(replace(op, attrs=groups), inputs[0], tensors["weight"], 0, np.float64)
    return total.astype(np.int32).astype(np.float32)


def _gated_conv(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    pictures, gains, weight = inputs[0], inputs[1], tensors["weight"]
    groups, outs, ins = op.attrs["groups"], len(weight) // op.attrs["groups"], weight.shape[-1]
    axes = {  # of the gain's channels: groups, outputs of a group, inputs of a group
        "output": (groups, outs, 1),
        "input": (groups, 1, ins),
        "tap": (1, 1, 1),
        "weight": (groups, outs, ins),
    }[op.attrs["gain"]]
    results = []
    for picture, gain in zip(pictures, gains, strict=True):
        by_group = gain.reshape(*gain.shape[:2], *axes).transpose(2, 3, 0, 1, 4)  # groups, outs, kh, kw, ins
        grouped = weight.reshape(groups, outs, *weight.shape[1:])
        scaled = (grouped * by_group).astype(np.float32).reshape(weight.shape)
        results.append(_convolve(op, picture[None], scaled, 0.0, np.float64).astype(np.float32))
    return np.concatenate(results) if results else np.zeros((0, 1, 1, len(weight)), np.float32)


def _adaptive_avg_pool(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    rows, columns = (
        [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]
        for size, bins in zip(_size(inputs[0]), output_size(op, _size(inputs[0])), strict=True)
    )
    windows = [[inputs[0][:, a:b, c:d].astype(np.float64).mean(axis=(1, 2)) for c, d in columns] for a, b in rows]
    return np.stack([np.stack(row, 1) for row in windows], 1).astype(np.float32)


def _binary_conv_transpose(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    a, picture, weight = op.attrs, inputs[0], _unpacked(op, tensors)
    (height, width), groups = output_size(op, _size(picture)), a["groups"]
    outs, ins = a["out_channels"] // groups, a["in_channels"] // groups
    total = np.zeros((len(picture), height, width, a["out_channels"]), np.int32)
    for y, x, ky, kx in np.ndindex(*_size(picture), *a["kernel"]):
        to_y = y * a["stride"][0] - a["padding"][0] + ky * a["dilation"][0]
        to_x = x * a["stride"][1] - a["padding"][1] + kx * a["dilation"][1]
        if not (0 <= to_y < height and 0 <= to_x < width):
            continue
        for g in range(groups):
            pixel = picture[:, y, x, g * ins : (g + 1) * ins].astype(np.int32)
            filters = weight[g * outs : (g + 1) * outs, ky, kx].astype(np.int32)
            total[:, to_y, to_x, g * outs : (g + 1) * outs] += pixel @ filters.T
    return total.astype(np.float32)


def _linear(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    return (inputs[0].astype(np.float64) @ tensors["weight"].astype(np.float64).T).astype(np.float32)


def _windows(op: Op, picture: Map) -> tuple[Map, np.ndarray, tuple[int, int]]:
    """A map widened by NaN so that every window lies inside it, a mask of real pixels, and the output size."""
    a = op.attrs
    out = output_size(op, _size(picture))
    dilation = a.get("dilation", [1, 1])
    widths = [(0, 0)]
    for i in (0, 1):
        reach = (out[i] - 1) * a["stride"][i] + dilation[i] * (a["kernel"][i] - 1) + 1
        widths.append((a["padding"][i], max(0, reach - a["padding"][i] - picture.shape[1 + i])))
    wide = np.pad(picture, (*widths, (0, 0)), constant_values=np.nan)
    inside = np.pad(np.ones(_size(picture), bool), widths[1:], constant_values=False)
    return wide, inside[None, :, :, None], out


def _max_pool(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    wide, inside, out = _windows(op, inputs[0])
    result = np.full((len(wide), *out, wide.shape[3]), -np.inf, np.float32)
    for tap in np.ndindex(*op.attrs["kernel"]):
        pixels = np.where(_tap(inside, tap, out, op), _tap(wide, tap, out, op), np.float32(-np.inf))
        result = np.maximum(result, pixels)
    return result


def _avg_pool(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    a = op.attrs
    wide, inside, out = _windows(op, inputs[0])
    total = np.zeros((len(wide), *out, wide.shape[3]))
    counted = np.zeros((1, *out, 1))
    # A window counts up to the end of the padding; with ceil_mode it may reach beyond, and that part never counts.
    within = np.zeros(inside.shape, bool)
    within[:, : inputs[0].shape[1] + 2 * a["padding"][0], : inputs[0].shape[2] + 2 * a["padding"][1]] = True
    for tap in np.ndindex(*a["kernel"]):
        real = _tap(inside, tap, out, op)
        total += np.where(real, _tap(wide, tap, out, op), np.float32(0)).astype(np.float64)
        counted += _tap(within, tap, out, op) if a["count_include_pad"] else real
    return (total / counted).astype(np.float32)


def _global_avg_pool(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    return inputs[0].astype(np.float64).mean(axis=(1, 2), keepdims=True).astype(np.float32)


def _concat(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    return np.concatenate(inputs, axis=3)


def _flatten(op: Op, inputs: list[Map], tensors: dict[str, np.ndarray]) -> Map:
    return np.ascontiguousarray(inputs[0].transpose(0, 3, 1, 2)).reshape(len(inputs[0]), 1, 1, -1)


_OPERATORS: dict[str, Callable[[Op, list[Map], dict[str, np.ndarray]], Map]] = {
    "binary_conv": _binary_conv,
    "binary_conv_transpose": _binary_conv_transpose,
    "conv": _conv,
    "linear": _linear,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": _global_avg_pool,
    "elementwise": lambda op, inputs, tensors: inputs[0],
    "concat": _concat,
    "flatten": _flatten,
    "gated_conv": _gated_conv,
    "windowed_conv": _conv,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "int8_conv": _int8_conv,
}


# --------------------------------------------------------------------------------------------------------------- steps


def _relu6(x: Map) -> Map:
    return np.minimum(np.maximum(x + np.float32(3), np.float32(0)), np.float32(6))


_FUNCTIONS: dict[str, Callable[[Map], Map]] = {
    "sigmoid": lambda x: np.float32(1) / (np.float32(1) + np.exp(-x)),
    "silu": lambda x: x / (np.float32(1) + np.exp(-x)),
    "hard_sigmoid": lambda x: _relu6(x) / np.float32(6),
    "hard_swish": lambda x: x * _relu6(x) / np.float32(6),
}


def _scaled(program: Program, step: Step, x: Map) -> Map:
    scale, bias = (None if name is None else program.tensors[name] for name in (step.scale, step.bias))
    if scale is not None and bias is not None:
        return fused_multiply_add(x, scale, bias)
    if scale is not None:
        return x * scale
    return x if bias is None else x + bias


def fused_multiply_add(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """``x * scale + bias`` of float32 numbers, rounded once.

    A float64 holds the product exactly and the sum rounded to odd (a sum that is not exact gets a last bit of 1), which
    rounded again gives what rounding once would.

    >>> small, one = np.float32(2**-13), np.float32(1)
    >>> bool(fused_multiply_add(one + small, one - small, -one) == -small * small)  # rounded, the product is 1
    True
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.asarray(x, np.float64) * scale
        total = product + bias
        part = total - product
        error = (product - (total - part)) + (bias - part)
        bits = total.view(np.int64)
        inexact = ((error < 0) | (error > 0)) & (bits & 1 == 0)
        odd = bits + np.where(inexact, np.where((error > 0) == (total > 0), 1, -1), 0)
        return odd.view(np.float64).astype(np.float32)


def written_by(program: Program, step: Step, x: Map) -> Map:
    """What a `store`, `sign` or `quantize` step writes for the running value x."""
    if step.kind == "sign":
        return np.where(_scaled(program, step, x) >= 0, 1, -1).astype(np.int8)
    if step.kind == "quantize":
        return _quantized(program, step, x)
    assert step.value is not None
    return round_bf16(x) if program.values[step.value].type == "bf16" else x


def _quantized(program: Program, step: Step, x: Map) -> Map:
    """The bytes that a `quantize` step writes for the running value x."""
    assert step.value is not None and step.factor is not None
    zero = int(zero_points(program.values[step.value])[0])
    low, high = np.float32(-zero), np.float32(255 - zero)
    scaled = x * np.float32(step.factor)
    scaled = np.minimum(np.where(scaled > low, scaled, low), high)  # NaN becomes the least byte
    return (np.rint(scaled).astype(np.int32) + zero).astype(np.uint8)


def _step(program: Program, step: Step, x: Map, values: list[Map | None]) -> Map:
    """The running value after `step`; `store`, `sign` and `quantize` write into `values`."""
    with np.errstate(over="ignore", invalid="ignore"):
        if step.kind in _FUNCTIONS:
            return _FUNCTIONS[step.kind](x)
        if step.kind == "affine":
            return _scaled(program, step, x)
        if step.kind == "clip":
            if step.min is not None:
                x = np.maximum(x, np.float32(step.min))
            return x if step.max is None else np.minimum(x, np.float32(step.max))
        if step.kind == "prelu":
            assert step.slope is not None
            return np.where(x >= 0, x, x * program.tensors[step.slope])
        assert step.value is not None
        if step.kind in WRITING_STEPS:
            values[step.value] = written_by(program, step, x)
        else:
            other = values[step.value]
            if other is None:
                raise ProgramError(f"value {step.value} is read before it is written")
            x = x + other if step.kind == "add" else x * other
    return x
