"""The native engine's part of verification: its values, operator by operator, against the reference interpreter."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np

from leanconv.compiler.compare import compare_real, fail, rms, written
from leanconv.compiler.errors import CompileError
from leanconv.engine import reference
from leanconv.program import WRITING_STEPS, Output, Program, Step, Value

INEXACT_STEPS = ("sigmoid", "silu", "hard_sigmoid", "hard_swish")


def instrumented(program: Program) -> Program:
    """`program` with every real value as an output, and what signs, bytes, bf16 are made of stored before them."""
    seen = copy.copy(program)
    seen.values, seen.ops, seen.outputs = list(program.values), [], []
    for op in program.ops:
        changed = copy.copy(op)
        changed.steps = []
        for step in op.steps:
            if step.kind in WRITING_STEPS and step.value is not None and program.values[step.value].type != "real":
                seen.values.append(Value("real", program.values[step.value].channels))
                changed.steps.append(Step("store", value=len(seen.values) - 1))
            changed.steps.append(step)
        seen.ops.append(changed)
        seen.outputs.extend(Output(f"v{v}", v, 4) for v in written(changed) if seen.values[v].type == "real")
    return seen


def native_values(program: Program, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The native engine's values, after checking every operator on its own inputs. Raises CompileError."""
    seen = instrumented(program)
    got = run_native(seen, inputs)
    values: list[np.ndarray | None] = [None] * len(seen.values)
    for description, array in zip(program.inputs, inputs, strict=True):
        values[description.value] = reference.input_map(program, description, array)
    for op in seen.ops:
        expected, trace = list(values), reference.Trace()
        reference.run_op(seen, op, expected, trace)
        assert trace.head is not None
        exact = op.kind.startswith(("binary", "int8")) and not any(s.kind in INEXACT_STEPS for s in op.steps)
        running = None
        for value in written(op):
            theirs = expected[value]
            assert theirs is not None
            if seen.values[value].type == "real":
                ours = got[f"v{value}"].transpose(0, 2, 3, 1)
                if exact and not np.array_equal(ours, theirs, equal_nan=True):
                    raise fail(
                        op,
                        f"the native engine's values differ by up to {np.abs(ours - theirs).max():.1e} from exact ones",
                    )
                compare_real(op, ours, theirs, max(rms(trace.head), rms(theirs)), "the reference")
                values[value] = running = ours
            else:
                assert running is not None
                step = next(s for s in op.steps if s.value == value)
                values[value] = reference.written_by(seen, step, running)
    plain = run_native(program, inputs)
    for output in program.outputs:
        seen_output = values[output.value]
        assert seen_output is not None
        if not np.array_equal(plain[output.name], reference.from_map(seen_output, output.dims), equal_nan=True):
            raise CompileError(
                f"verification failed: the native engine gives output {output.name} differently in two runs"
            )
    return [v if v is not None else np.zeros(0, np.float32) for v in values]


def run_native(program: Program, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every output of the native engine by name."""
    from leanconv import engine

    with tempfile.TemporaryDirectory(prefix="leanconv-verify-") as folder:
        path = Path(folder) / "model.lconv"
        program.save(path)
        model = engine.load(path, threads=1)
        named = {i.name: a for i, a in zip(program.inputs, inputs, strict=True)}
        result = model(named if len(named) > 1 else inputs[0])
    return result if isinstance(result, dict) else {program.outputs[0].name: result}
