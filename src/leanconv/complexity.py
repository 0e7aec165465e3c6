"""Parameters, multiply-adds and bytes of a compiled network: the one place where they are counted.

Only multiply-adds of convolutions and dense layers count, at their nominal channel numbers (a transposed convolution:
input pixels times taps); batch norm, pooling, joins, scales and biases count 0. ``ops`` = real + binary / 64. "Without
stem" drops the first convolution. Memory is 1 bit a binary weight, 1 byte an int8 weight and 4 bytes any other
real-valued parameter, batch norm's included, running statistics and filter scales not; the packed file holds tensors as
the engine reads them (batch norm folded into scale and bias) and a header. Multiply-adds in int8 count as real ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from leanconv.program import WRITING_STEPS, Op, Program, ProgramError, infer_sizes

WEIGHTED = ("binary_conv", "binary_conv_transpose", "conv", "gated_conv", "windowed_conv", "linear", "int8_conv")


@dataclass
class LayerCost:
    """One operator: shapes are [height, width, channels] of the map that it reads and of the one that it makes.

    `bytes_memory` is rounded up to whole bytes, `bytes_packed` counts its tensors in the file, without the header.
    """

    name: str
    kind: str
    input: list[int]
    output: list[int]
    parameters_binary: int
    parameters_real: int
    macs_binary: int
    macs_real: int
    ops: float
    bytes_memory: int
    bytes_packed: int


def complexity(program: Program, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Counts of one picture: `parameters_binary parameters_real macs_binary macs_real ops ops_without_stem depth
    bytes_memory bytes_packed`, the input `size` they hold for, `stem` (the first convolution's name, or None), and
    `layers` (a dict of :class:`LayerCost` for each operator).

    `depth` counts convolutions and dense layers on the longest path. Args: `size` (height, width) where the network
    leaves it free; by default that of the preprocessing. Raises ProgramError where no size is known or the network
    does not take it.
    """
    sizes = infer_sizes(program, {i.value: _input_size(program, i.height, i.width, size) for i in program.inputs})
    counted: set[str] = set()
    layers = [_cost(op, program, sizes, counted) for op in program.ops]
    binary, real = sum(row.macs_binary for row in layers), sum(row.macs_real for row in layers)
    stem = next((row for row in layers if row.kind in WEIGHTED and row.kind != "linear"), None)
    ops = real + binary / 64
    parameters_binary = sum(row.parameters_binary for row in layers)
    parameters_real = sum(row.parameters_real for row in layers)
    first = program.inputs[0]
    return {
        "parameters_binary": parameters_binary,
        "parameters_real": parameters_real,
        "macs_binary": binary,
        "macs_real": real,
        "ops": ops,
        "ops_without_stem": ops - (stem.ops if stem else 0),
        "depth": _depth(program),
        "bytes_memory": _memory(
            parameters_binary, parameters_real, sum(_int8_weights(op, program) for op in program.ops)
        ),
        "bytes_packed": len(program.to_bytes()),
        "size": list(sizes[first.value]),
        "stem": stem.name if stem else None,
        "layers": [asdict(row) for row in layers],
    }


def _input_size(
    program: Program, height: int | None, width: int | None, size: tuple[int, int] | None
) -> tuple[int, int]:
    if height is not None and width is not None:
        if size is not None and size != (height, width) and (height, width) != (1, 1):
            raise ProgramError(f"this network takes {height}x{width} inputs only, not {size[0]}x{size[1]}")
        return height, width
    if size is None and program.preprocessing is not None:
        _, preset_height, preset_width = program.preprocessing["input_size"]
        size = (preset_height, preset_width)
    if size is None:
        raise ProgramError("this network takes inputs of any size: say for which height and width to count")
    return height or size[0], width or size[1]


def _memory(parameters_binary: int, parameters_real: int, int8: int) -> int:
    """`int8`: how many of the real-valued ones take one byte."""
    return (parameters_binary + 7) // 8 + 4 * parameters_real - 3 * int8


def _int8_weights(op: Op, program: Program) -> int:
    if op.kind != "int8_conv":
        return 0
    return min(program.tensors[op.tensors["weight"]].size, op.parameters_real)


def _cost(op: Op, program: Program, sizes: list[tuple[int, int]], counted: set[str]) -> LayerCost:
    """`counted`: the tensors that earlier operators hold; those of this one are added."""
    a = op.attrs
    before = sizes[op.inputs[0]]
    after, channels = _result(op, program, sizes)
    weights = pixels = 0
    if op.kind in WEIGHTED:
        kernel = a.get("kernel", [1, 1])
        read = a.get("window", a["in_channels"] // a.get("groups", 1))  # input channels of a filter
        weights = kernel[0] * kernel[1] * read * a["out_channels"]
        pixels = before[0] * before[1] if op.kind == "binary_conv_transpose" else after[0] * after[1]
    binary = op.kind.startswith("binary")
    joined = op.inputs if op.kind == "concat" else op.inputs[:1]
    macs = weights * pixels
    tensors = _tensors(op) - counted
    counted |= tensors
    return LayerCost(
        name=op.name,
        kind=op.kind,
        input=[*before, sum(program.values[value].channels for value in joined)],
        output=[*after, channels],
        parameters_binary=weights if binary else 0,
        parameters_real=op.parameters_real,
        macs_binary=macs if binary else 0,
        macs_real=0 if binary else macs,
        ops=macs / 64 if binary else macs,
        bytes_memory=_memory(weights if binary else 0, op.parameters_real, _int8_weights(op, program)),
        bytes_packed=sum(program.tensors[name].nbytes for name in tensors),
    )


def _tensors(op: Op) -> set[str]:
    """The names of all tensors that an operator and its steps use."""
    of_steps = (name for s in op.steps for name in (s.scale, s.bias, s.slope) if name is not None)
    return {*op.tensors.values(), *of_steps}


def _written(op: Op) -> list[int]:
    return [
        *([] if op.output is None else [op.output]),
        *(s.value for s in op.steps if s.kind in WRITING_STEPS and s.value is not None),
    ]


def _result(op: Op, program: Program, sizes: list[tuple[int, int]]) -> tuple[tuple[int, int], int]:
    value = _written(op)[0]
    return sizes[value], program.values[value].channels


def _depth(program: Program) -> int:
    """Weighted operators on the longest path from an input to any value."""
    depth = [0] * len(program.values)
    for op in program.ops:
        so_far = max(depth[v] for v in op.inputs) + (op.kind in WEIGHTED)
        for step in op.steps:
            if step.value is None:
                continue
            if step.kind in WRITING_STEPS:
                depth[step.value] = so_far
            else:
                so_far = max(so_far, depth[step.value])
        if op.output is not None:
            depth[op.output] = so_far
    return max(depth)
