"""Which real maps of a network are stored in bf16: half the memory between operators, arithmetic in float32."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from leanconv.program import BF16_READERS, Program


def store_in_bf16(program: Program) -> list[int]:
    """Let `program`, in place, store in bf16 every real map that only operators read which can; their value numbers.

    Inputs and outputs stay float32, what operators without steps (concatenation, flattening) write, and what a
    convolution makes for a max-pooling right behind it: the engine pools that before it reaches memory.

    >>> from leanconv.program import Input, Op, Output, Step, Value
    >>> first = Op("elementwise", "first", [0], steps=[Step("store", 1)])
    >>> second = Op("max_pool", "second", [1], steps=[Step("store", 2)])
    >>> values = [Value("real", 8) for _ in range(3)]
    >>> program = Program([Input("x", 0, 8, 4, 4)], [Output("y", 2)], values, [first, second], {})
    >>> store_in_bf16(program), [value.type for value in program.values]
    ([1], ['real', 'bf16', 'real'])
    """
    kept = {result.value for result in program.outputs}
    kept.update(value for op in program.ops if op.kind not in BF16_READERS for value in op.inputs)
    readers = Counter(
        value for op in program.ops for value in (*op.inputs, *(s.value for s in op.steps if s.kind in ("add", "mul")))
    )
    for made, pool in pairwise(program.ops):
        if pool.kind == "max_pool" and made.kind in ("conv", "int8_conv") and readers[pool.inputs[0]] == 1:
            kept.update(pool.inputs)
    stored = {step.value for op in program.ops for step in op.steps if step.kind == "store" and step.value is not None}
    chosen = sorted(stored - kept)
    for value in chosen:
        program.values[value].type = "bf16"
    program.provenance = {**program.provenance, "real_maps": "bf16"}
    return chosen
