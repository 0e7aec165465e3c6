"""Random small networks against the oracle: what no list of shapes thinks of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanconv.engine import isa_names
from leanconv.program import BF16_READERS, WRITING_STEPS, ProgramError, Step, output_size
from tests.engine.builder import Builder, check

KINDS = ["affine", "add", "mul", "clip", "prelu", "store", "sign", "quantize"]
STORED = st.sampled_from(["real", "real", "bf16"])  # sums above 256 are rounded in bf16, ties among them


def integers(b: Builder, channels: int) -> str:
    """A per-channel tensor of small integers: with it a network stays exact."""
    return b.tensor(b.rng.integers(-2, 3, channels).astype(np.float32))


def draw_steps(draw, b: Builder, channels: int, size, sizes) -> list[Step]:
    """A chain of exact steps with one or two results."""
    steps: list[Step] = []
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=5)):
        readable = [
            v
            for v, s in sizes.items()
            if s in (size, (1, 1)) and b.values[v].type in ("real", "bf16") and b.channels(v) == channels
        ]
        if kind == "affine":
            steps.append(
                Step("affine", scale=integers(b, channels), bias=integers(b, channels) if draw(st.booleans()) else None)
            )
        elif kind in ("add", "mul") and readable:
            steps.append(Step(kind, value=draw(st.sampled_from(readable))))
            steps.append(Step("clip", min=-64.0, max=64.0))  # keeps products inside exact integers
        elif kind == "clip":
            steps.append(
                Step("clip", min=draw(st.sampled_from([None, -3.0, 0.0])), max=draw(st.sampled_from([None, 5.0])))
            )
        elif kind == "prelu":
            steps.append(Step("prelu", slope=integers(b, channels)))
        elif kind == "store":
            steps.append(b.store(channels, draw(STORED)))
        elif kind == "sign":
            steps.append(Step("sign", b.value("bits", channels), None, integers(b, channels)))
        elif kind == "quantize":  # ties, saturation on both sides
            zero = draw(st.sampled_from([0, 3, 128, 255]))
            steps.append(b.quantize(channels, draw(st.sampled_from([0.5, 0.3, 1.0, 40.0])), zero))
    return [*steps, Step("clip", min=-64.0, max=64.0), b.store(channels, draw(STORED))]


@st.composite
def programs(draw):
    channels = draw(st.sampled_from([1, 3, 8, 32, 33, 66]))
    b = Builder(channels, seed=draw(st.integers(0, 1000)))
    from_bytes = draw(st.integers(0, 4)) == 0
    if from_bytes:
        b.byte_input(draw(st.lists(st.integers(0, 255), min_size=channels, max_size=channels)))
    size = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    sizes = {b.input: size}
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(
            st.sampled_from(
                [
                    "binary",
                    "binary",
                    "transpose",
                    "conv",
                    "int8",
                    "int8",
                    "max_pool",
                    "elementwise",
                    "concat",
                    "flatten",
                ]
            )
        )
        reals = [v for v in sizes if b.values[v].type == "real"]
        bits = [v for v in sizes if b.values[v].type == "bits"]
        pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
        mark = len(b.ops), len(b.values), dict(b.tensors)
        packed = [v for v in sizes if b.values[v].type == "bytes"]
        readable = {"binary": bits, "transpose": bits, "int8": packed}.get(kind, reals)
        if kind in BF16_READERS:
            readable = reals + [v for v in sizes if b.values[v].type == "bf16"]
        if not readable:
            kind, readable = "elementwise", reals
        if not readable:
            continue
        source = draw(st.sampled_from(readable))
        c = b.channels(source)
        groups = draw(st.sampled_from([g for g in (1, 1, 2, 3, 11) if c % g == 0]))
        out = groups * draw(st.sampled_from([1, 3, 16, 33]))
        kernel, stride, dilation = draw(pair), draw(pair), draw(pair)
        if kind == "binary":
            padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
            value = b.binary_conv(source, out, kernel, [], stride=stride, dilation=dilation, padding=padding,
                                  groups=groups, pad_value=draw(st.sampled_from([-1, 0, 1])))  # fmt: skip
        elif kind == "transpose":
            stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
            value = b.binary_conv_transpose(source, out, kernel, [], stride=stride, dilation=dilation, groups=groups,
                                            padding=draw(st.tuples(st.integers(0, 2), st.integers(0, 2))))  # fmt: skip
        elif kind == "int8":
            padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
            value = b.int8_conv(source, out, kernel, [], stride=stride, dilation=dilation, padding=padding)
        elif kind == "conv":
            weight = b.rng.integers(-2, 3, (out, *kernel, c // groups)).astype(np.float32)
            padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
            value = b.conv(
                source, out, kernel, [], stride=stride, dilation=dilation, padding=padding, groups=groups, weight=weight
            )
        elif kind == "max_pool":
            out = c
            value = b.max_pool(
                source,
                kernel,
                stride,
                tuple(draw(st.integers(0, k // 2)) for k in kernel),
                dilation,
                draw(st.booleans()),
                [],
            )
        elif kind == "elementwise":
            out = c
            value = b.elementwise(source, [])
        elif kind == "concat":
            same = [v for v in reals if sizes[v] == sizes[source]]
            value = b.concat(source, *draw(st.lists(st.sampled_from(same), max_size=3)))
        else:
            value = b.flatten(source, *sizes[source])
        op = b.ops[-1]
        try:
            made = output_size(op, sizes[source])
        except ProgramError:
            made = None
        if made is None or made[0] * made[1] > 2000 or (op.output is not None and b.channels(op.output) > 4000):
            del b.ops[mark[0] :], b.values[mark[1] :]
            b.tensors = mark[2]
            continue
        if op.output is None:
            op.steps = draw_steps(draw, b, out, made, sizes)
            for step in op.steps:
                if step.kind in WRITING_STEPS:
                    sizes[step.value] = made
        else:
            sizes[value] = made
    reals = [v for v in sizes if b.values[v].type == "real"]
    if not reals:
        reals = [b.int8_conv(b.input, 5)]
    for v in [*draw(st.lists(st.sampled_from(reals), min_size=1, max_size=4)), reals[-1]]:
        b.output(v)
    batch = draw(st.sampled_from([1, 2, 5]))
    x = np.random.default_rng(0).integers(-4, 5, (batch, channels, *size)).astype(np.float32)
    if from_bytes:
        x = np.random.default_rng(0).integers(0, 256, (batch, *size, channels), dtype=np.uint8)
    return b.program(), x


DRAWN = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("isa", isa_names())
@settings(max_examples=30, **DRAWN)
@given(case=programs())
def test_random_programs_are_bit_exact(isa, case):
    program, x = case
    check(program, x, exact=True, isas=[isa])


@pytest.mark.slow
@pytest.mark.parametrize("isa", isa_names())
@settings(max_examples=500, **DRAWN)
@given(case=programs())
def test_many_random_programs_are_bit_exact(isa, case):
    program, x = case
    check(program, x, exact=True, isas=[isa])
