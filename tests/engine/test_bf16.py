"""Real maps stored in bf16 against the oracle: exact on every instruction set, refused where nothing can read them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv import engine
from leanconv.engine import reference
from leanconv.program import Program, ProgramError, Step, round_bf16
from tests.engine.builder import Builder, check, pictures

# ties to even and odd, what overflows, denormals, zeros, infinities and NaNs of several kinds
EDGES = np.array(
    [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF808000, 0x7F7FFFFF, 0xFF7F8000, 0x7F7F7FFF, 0x00000001,
     0x00008000, 0x00018000, 0x807FFFFF, 0x0000FFFF, 0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001,
     0xFFFFFFFF, 0x7FFF8000],
    np.uint32,
)  # fmt: skip


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_rounding_is_that_of_torch(bits):
    x = np.concatenate([np.array(bits, np.uint32), EDGES]).view(np.float32)
    tiny = np.abs(x) < 2.0**-126  # which torch keeps
    theirs = torch.from_numpy(np.where(tiny, np.copysign(np.float32(0), x), x)).to(torch.bfloat16).float().numpy()
    ours = round_bf16(x)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(x))
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(ours[numbers].view(np.uint32), theirs[numbers].view(np.uint32))


def half(b: Builder, value: int) -> int:
    """A value, stored in bf16."""
    c = b.channels(value)
    return b.op("elementwise", [value], c, [b.store(c, "bf16")])


@pytest.mark.parametrize("channels", [1, 7, 16, 33, 70])
def test_rounding_at_the_edges(channels):
    b = Builder(channels)
    b.output(b.elementwise(half(b, b.input), [b.store(channels)]))
    x = np.resize(EDGES.view(np.float32), (1, channels, 5, 21))
    oracle = reference.run(b.program(), [x])[0]
    for isa in engine.isa_names():
        got = engine.Model(b.program().to_bytes(), isa=isa)(x)
        np.testing.assert_array_equal(got.view(np.uint32), oracle.view(np.uint32), err_msg=isa)


@pytest.mark.parametrize("channels", [3, 16, 41, 64, 130])
def test_every_reader(channels):
    b = Builder(channels, seed=channels)
    stored = half(b, b.input)
    gate = b.op("global_avg_pool", [stored], channels, [b.store(channels, "bf16")])
    b.output(b.max_pool(stored))
    b.output(b.avg_pool(stored, (2, 4)))
    b.output(b.global_avg_pool(stored))
    for kind in ("add", "mul"):
        for other in (stored, gate):
            b.output(b.elementwise(b.input, [Step(kind, value=other), b.affine(channels), b.store(channels)]))
    b.output(b.binary_conv(b.op("elementwise", [stored], channels, [b.sign(channels, scale=True)]), 9))
    signs = [b.sign(channels), b.store(channels, "bf16"), Step("clip", min=0.0), b.store(channels)]
    b.elementwise(stored, [b.affine(channels), *signs])
    b.output(signs[-1].value)
    check(b.program(), np.round(pictures(channels, 12, 8) * 900), exact=True)


@pytest.mark.parametrize("kind", ["bf16", "real"])
@pytest.mark.parametrize("out", [16, 40, 64, 100])
def test_a_chain_of_residual_blocks(out, kind):
    """Each block adds to the map of the one before, in place; the second half also hands it to a pooling."""
    b = Builder(5, seed=out)
    steps = [b.affine(out), b.store(out, kind), b.sign(out)]
    b.binary_conv(b.bits(b.input), out, steps=steps)
    for pooled in (False, False, True):
        stored, bits = (s.value for s in steps[-2:])
        steps = [b.affine(out), Step("add", value=stored), b.store(out, "bf16"), b.sign(out)]
        b.binary_conv(bits, out, steps=steps)
        if pooled:
            b.output(b.max_pool(stored))
    b.output(b.binary_conv(steps[-1].value, 8))
    b.output(b.elementwise(steps[-2].value, [b.store(out)]))
    check(b.program(), pictures(5, 23, 17), exact=True)


@pytest.mark.parametrize("size", [(37, 41), (150, 140)])
def test_a_stem_is_pooled_in_bands(size):
    b = Builder(3, seed=8)
    b.byte_input([124, 116, 104])
    affine = Step("affine", scale=b.tensor(np.full(64, 2.0**-9, np.float32)), bias=b.floats(64))
    stem = b.int8_conv(b.input, 64, (7, 7), [affine, b.store(64, "bf16")], stride=(2, 2), padding=(3, 3, 3, 3))
    steps = [b.store(64, "bf16"), b.sign(64)]
    b.max_pool(stem, steps=steps)
    b.output(b.elementwise(steps[0].value, [b.store(64)]))
    b.output(b.binary_conv(steps[1].value, 8))
    x = np.random.default_rng(1).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    check(b.program(), x, exact=True, threads=(1, 2, 3))


@pytest.mark.parametrize("kind", ["real", "bf16"])
def test_pooling_behind_an_affine(kind):
    """The engine does the affine while it pools, but only where nothing is rounded between."""
    b = Builder(20, seed=5)
    affine = Step("affine", scale=b.floats(20), bias=b.floats(20))
    scaled = b.elementwise(half(b, b.input), [affine, b.store(20, kind)])
    b.output(b.max_pool(scaled, (2, 2), (2, 2), (0, 0)))
    check(b.program(), pictures(20), exact=True)


def refuse(b: Builder, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        engine.Model(b.program().to_bytes())


def test_operators_that_cannot_read_it():
    for make in (
        lambda b, v: b.conv(v, 4),
        lambda b, v: b.linear(v, 4),
        lambda b, v: b.concat(v, b.input),
        lambda b, v: b.concat(b.input, v),
        lambda b, v: b.flatten(v, 3, 3),
        lambda b, v: b.adaptive_avg_pool(v, 2, 2),
        lambda b, v: b.gated_conv(b.input, v, 6, (1, 1), gain="input", padding=(0,) * 4),
        lambda b, v: b.int8_conv(v, 4),
    ):
        b = Builder(6)
        b.output(make(b, half(b, b.input)))
        refuse(b, r"operator 1 \(.*\) cannot read value 1, which is stored in bf16")
    b = Builder(6)
    b.output(b.binary_conv(half(b, b.input), 4))
    refuse(b, "cannot read value 1")


def test_inputs_and_outputs_are_float32():
    b = Builder(6)
    b.output(half(b, b.input))
    refuse(b, "output 0 is a map of bf16; only real maps can be outputs")
    b = Builder(6)
    b.values[b.input].type = "bf16"
    b.output(b.elementwise(b.input, [b.store(6)]))
    refuse(b, "input 0 does not fit its value")


def test_only_a_store_writes_it():
    b = Builder(6)
    joined = b.concat(b.input, b.input)
    b.values[joined].type = "bf16"
    b.output(b.elementwise(joined, [b.store(12)]))
    refuse(b, "its output says otherwise")
    for step in (b.sign(6), b.quantize(6)):
        b = Builder(6)
        step.value = b.value("bf16", 6)
        step.bias = None
        b.output(b.op("elementwise", [b.input], 6, [step, b.store(6)]))
        refuse(b, "is declared otherwise")


def test_a_file_is_read_back_whole(tmp_path):
    b = Builder(5, seed=1)
    b.output(b.max_pool(half(b, b.input)))
    b.program().save(tmp_path / "m.lconv")
    again = Program.load(tmp_path / "m.lconv")
    assert again.to_bytes() == b.program().to_bytes() and again.values[1].type == "bf16"
