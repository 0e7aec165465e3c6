"""What each operator of a network would take at least on this machine: its arithmetic, or what it must read and write.

    limit = max(binary MACs / peak of xor, popcount, addition + real MACs / peak of fp32 or int8, bytes / bandwidth)

Peaks and bandwidths are those of :mod:`leanconv.engine.peaks`: arithmetic of the instruction set that runs, and reading
from the level of memory that holds all that the operator touches for one picture. Bytes are maps (4 a real value, 2 in
bf16, 1 where it is a byte, 1/8 a sign) and weights, each counted once; what fused operators hand to each other stays in
the processor and counts 0. It is a lower bound: writing is not slower than reading, tiles are never padded, nothing is
rearranged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from leanconv.engine.peaks import Peaks
from leanconv.engine.profile import OpTime
from leanconv.program import WRITING_STEPS, Op, Program, infer_sizes

JOIN = " + "  # between the names of operators that run as one


def add_limits(
    rows: Iterable[OpTime], program: Program, size: Sequence[int], batch: int, isa: str, peaks: Peaks
) -> list[dict[str, Any]]:
    """The rows of a profile of `batch` pictures of `size` (height, width), each with three more entries.

    `limit_ms` (None where there is nothing to do), `share` (limit_ms / ms) and `bound`: ``binary``, ``fp32`` or
    ``int8`` arithmetic, or the level of memory. `peaks` are of as many threads as the profile.
    """
    sizes = infer_sizes(program, {i.value: (i.height or size[0], i.width or size[1]) for i in program.inputs})
    ops = {op.name: op for op in program.ops}
    found = []
    for row in rows:
        group = _operators(row["name"], ops)
        touched = _bytes(group, row["kind"], program, sizes) + _weights(group, program)
        limit, bound = _limit(row, _precision(group, program), touched, batch, isa, peaks)
        share = limit / row["ms"] if limit is not None and row["ms"] > 0 else None
        found.append({**row, "limit_ms": limit, "share": share, "bound": bound})
    return found


def _operators(name: str, ops: dict[str, Op]) -> list[Op]:
    """The operators that ran as the one that the profile calls `name`; none for inputs and outputs."""
    if name in ops:
        return [ops[name]]
    parts = name.split(JOIN)
    return [ops[part] for part in parts] if all(part in ops for part in parts) else []


def _precision(group: list[Op], program: Program) -> str:
    int8 = any(program.tensors[name].dtype == np.int8 for op in group for name in op.tensors.values())
    return "int8" if int8 else "fp32"


def _weights(group: list[Op], program: Program) -> int:
    steps = (step for op in group for step in op.steps)
    of_steps = {name for s in steps for name in (s.scale, s.bias, s.slope) if name is not None}
    names = {name for op in group for name in op.tensors.values()} | of_steps
    return sum(program.tensors[name].nbytes for name in names)


def _bytes(group: list[Op], kind: str, program: Program, sizes: list[tuple[int, int]]) -> float:
    """Bytes of the maps that a group of operators reads and writes for one picture."""

    def of(value: int) -> float:
        height, width = sizes[value]
        each = {"real": 4.0, "bf16": 2.0, "bytes": 1.0}.get(program.values[value].type, 1 / 8)
        return height * width * program.values[value].channels * each

    if (
        not group
    ):  # pictures are bytes where the file says how they are normalised, and become floats; outputs are copied
        values = [i.value for i in program.inputs] if kind == "input" else [o.value for o in program.outputs]
        widened = {v for v in values if kind == "input" and program.preprocessing and program.values[v].type == "real"}
        return sum(of(value) * (1.25 if value in widened else 2.0) for value in values)
    read = {value for op in group for value in op.inputs}
    written = {op.output for op in group if op.output is not None}
    for step in (step for op in group for step in op.steps):
        if step.value is not None:
            (written if step.kind in WRITING_STEPS else read).add(step.value)
    inside = read & written if len(group) > 1 else set()  # handed on; one operator may add to a map in place
    return sum(of(value) for value in read - inside) + sum(of(value) for value in written - inside)


def _limit(
    row: OpTime, real: str, touched: float, batch: int, isa: str, peaks: Peaks
) -> tuple[float | None, str | None]:
    """Pictures run one after another, each touching `touched` bytes."""
    arithmetic = 0.0
    for macs, kind in ((row["macs_binary"], "binary"), (row["macs_real"], real)):
        best = peaks.best(kind, isa)
        if macs and best is not None:
            arithmetic += macs / best.gmacs / 1e6
    level = peaks.level(round(touched))
    memory = touched * batch / level.gb_per_s / 1e6 if level is not None else 0.0
    if not arithmetic and not memory:
        return None, None
    if arithmetic >= memory:
        return arithmetic, "binary" if row["macs_binary"] else real
    assert level is not None
    return memory, level.level
