"""leanconv.bench.limits: limits of operators, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from leanconv import engine
from leanconv.bench.limits import add_limits
from leanconv.engine.peaks import Bandwidth, Peaks, Rate
from leanconv.program import Program, Step
from tests.engine.builder import Builder

PEAKS = Peaks(
    4.0,
    1,
    (
        Rate("count", "avx2", "binary", 1000.0, 250.0),
        Rate("faster count", "avx512", "binary", 5000.0, 1250.0),
        Rate("fma", "avx2", "fp32", 50.0, 12.5),
        Rate("dot", "avx2", "int8", 200.0, 50.0),
    ),
    (Bandwidth("L1", 16384, 400.0), Bandwidth("memory", 1 << 26, 20.0)),
)


def limits(program: Program, size: int, batch: int = 1) -> dict[str, tuple[float, str, float]]:
    """Milliseconds, what bounds and share of every row; every operator takes two milliseconds."""
    model = engine.Model(program.to_bytes(), 1, isa="portable")
    pictures = np.zeros((batch, program.inputs[0].channels, size, size), np.float32)
    rows = [{**row, "ms": 2.0} for row in model.profile(pictures, repeats=1)]
    found = add_limits(rows, program, (size, size), batch, "avx2", PEAKS)
    assert all({key: row[key] for key in given} == given for row, given in zip(found, rows, strict=True))
    return {row["name"]: (row["limit_ms"], row["bound"], row["share"]) for row in found}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("size", "bandwidth", "level"), [(8, 400e6, "L1"), (64, 20e6, "memory")])
def test_arithmetic_and_bandwidth_by_hand(batch, size, bandwidth, level):
    b = Builder(16, seed=0)
    real = b.conv(b.input, 16, (3, 3))
    out = b.binary_conv(b.bits(real), 16, (1, 1), [Step("add", value=real), b.store(16)], padding=(0, 0, 0, 0))
    b.output(b.avg_pool(out))
    found = limits(b.program(), size, batch)
    pixels = size * size * batch
    expected = {
        "input": (pixels * 16 * 8 / bandwidth, level),  # floats in, floats out
        "conv0": (pixels * 9 * 16 * 16 / 50e6, "fp32"),
        "elementwise1": (pixels * 16 * (4 + 1 / 8) / bandwidth, level),
        # signs, the shortcut, the result; weights of every picture: a word for each of 16 filters
        "binary_conv2": ((pixels * 16 * (1 / 8 + 4 + 4) + batch * 16 * 16 / 8) / bandwidth, level),
        "avg_pool3": (pixels * 16 * 4 * 1.25 / bandwidth, level),
        "output": (pixels / 4 * 16 * 8 / (400e6 if size == 8 else 20e6), level),
    }
    assert list(found) == list(expected)
    for name, (ms, bound) in expected.items():
        assert found[name] == (pytest.approx(ms), bound, pytest.approx(ms / 2)), name


def test_binary_work_counts_at_the_rate_of_the_instruction_set_that_ran():
    b = Builder(512, seed=0)
    b.output(b.binary_conv(b.bits(b.input), 512, steps=[b.store(512)]))
    found = limits(b.program(), 4)
    assert found["binary_conv1"][:2] == (pytest.approx(16 * 9 * 512 * 512 / 1000e6), "binary")


def test_int8_weights_are_held_against_the_int8_peak():
    b = Builder(64, seed=0)
    b.output(b.conv(b.input, 64))
    program = b.program()
    (conv,) = program.ops
    row = {"name": conv.name, "kind": "conv", "ms": 1.0, "macs_binary": 0, "macs_real": 10**9}
    floats = add_limits([row], program, (4, 4), 1, "avx2", PEAKS)[0]
    program.tensors[conv.tensors["weight"]] = program.tensors[conv.tensors["weight"]].astype(np.int8)
    ints = add_limits([row], program, (4, 4), 1, "avx2", PEAKS)[0]
    assert (floats["bound"], floats["limit_ms"]) == ("fp32", pytest.approx(20.0))
    assert (ints["bound"], ints["limit_ms"]) == ("int8", pytest.approx(5.0))


def test_fused_operators_count_what_leaves_them_only():
    b = Builder(3, seed=0)
    b.output(b.max_pool(b.conv(b.input, 8, (7, 7), stride=(2, 2), padding=(3, 3, 3, 3))))
    program = b.program()
    conv, pool = program.ops
    row = {"name": f"{conv.name} + {pool.name}", "kind": "conv", "ms": 1.0, "macs_binary": 0, "macs_real": 0}
    (found,) = add_limits([row], program, (64, 64), 1, "avx2", PEAKS)
    moved = 4 * (64 * 64 * 3 + 16 * 16 * 8 + 49 * 3 * 8)
    assert found["limit_ms"] == pytest.approx(moved / 20e6) and found["bound"] == "memory"


@pytest.mark.parametrize("int8", [False, True])
def test_a_convolution_that_pools_its_input_counts_its_macs_and_the_map_that_it_pools(int8):
    b = Builder(16, seed=0)
    pooled = b.avg_pool(b.input, steps=[b.quantize(16)] if int8 else None)
    conv = b.int8_conv if int8 else b.conv
    b.output(conv(pooled, 64, (1, 1), padding=(0,) * 4))
    program = b.program()
    name = f"avg_pool0 + {program.ops[1].name}"
    macs, moved = 32 * 32 * 16 * 64, 4 * 64 * 64 * 16 + 4 * 32 * 32 * 64 + 16 * 64 * (1 if int8 else 4)
    arithmetic = macs / (200e6 if int8 else 50e6)
    limit = max((arithmetic, "int8" if int8 else "fp32"), (moved / 20e6, "memory"))
    assert limits(program, 64)[name][:2] == (pytest.approx(limit[0]), limit[1])


def test_bytes_count_one_each_and_a_quantize_writes_them():
    b = Builder(16, seed=0)
    made = b.bytes(b.input)
    b.output(b.int8_conv(made, 16, (1, 1), padding=(0,) * 4))
    found = limits(b.program(), 64)
    assert found["elementwise0"][:2] == (pytest.approx(64 * 64 * 16 * 5 / 20e6), "memory")
    assert found["int8_conv1"][:2] == (pytest.approx((64 * 64 * 16 * 5 + 256) / 20e6), "memory")
