"""Dense and fractal blocks: maps that grow by concatenation, many signs of one map, joins of branches, odd widths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanconv.program import Step
from tests.engine.builder import Builder, check, pictures

ODD_WIDTHS = [1, 16, 31, 41, 48, 53, 64, 82, 105]


def integers(b: Builder, channels: int) -> str:
    return b.tensor(b.rng.integers(-2, 3, channels).astype(np.float32))


def dense_layer(b: Builder, whole: int, growth: int, signs: int, steps: list[Step]) -> int:
    """`whole` with `growth` channels more: binary convolutions of `signs` signs of it, added up."""
    c = b.channels(whole)
    taken = [b.sign(c, scale=i % 2 == 0, bias=i % 3 != 1) for i in range(signs)]
    b.elementwise(whole, taken)
    branches = [b.binary_conv(s.value, growth, steps=[b.store(growth)]) for s in taken[:-1]]
    join = [Step("add", value=v) for v in branches[-2:]]
    last = b.binary_conv(taken[-1].value, growth, steps=[*join, *steps, b.store(growth)])
    return b.concat(whole, last)


@pytest.mark.parametrize("growth", ODD_WIDTHS)
def test_dense_block(growth):
    b = Builder(53)
    whole = b.elementwise(b.input, [b.affine(53), b.store(53)])
    for signs in (1, 2, 3):
        whole = dense_layer(b, whole, growth, signs, [b.affine(growth, bias=False)])
    b.output(whole)
    check(b.program(), pictures(53, 7, 9), exact=True)


def test_a_chain_of_concatenations_copies_nothing():
    b = Builder(32)
    whole = b.elementwise(b.input, [b.affine(32), b.store(32)])
    for _ in range(4):
        whole = dense_layer(b, whole, 48, 1, [])
    b.output(b.global_avg_pool(whole), dims=2)
    program = b.program()
    from leanconv import _core

    x = pictures(32, 11, 11)
    timed = [row["kind"] for row in _core.Model(program.to_bytes(), 1, "").profile([x], 1)]
    assert "concat" not in timed  # an operator without work of its own has no row
    assert timed.count("binary_conv") == 4
    check(program, x, exact=False)


@pytest.mark.parametrize("channels", ODD_WIDTHS)
@pytest.mark.parametrize("head", ["none", "scale", "bias", "both"])
@pytest.mark.parametrize("branches", [0, 1, 2, 3])
def test_joins(channels, head, branches):
    """Sums and means of branches in one epilogue, with and without a sign behind them."""
    b = Builder(41)
    bits = b.bits(b.input)
    others = [b.binary_conv(bits, channels) for _ in range(branches)]
    adds = [Step("add", value=v) for v in others]
    affine = [b.affine(channels, scale=head != "bias", bias=head != "scale")] if head != "none" else []
    ends = [
        [b.store(channels)],
        [b.affine(channels, bias=False), b.store(channels)],
        [b.affine(channels, bias=False), b.store(channels), b.sign(channels, bias=False)],
        [b.sign(channels, scale=True), b.store(channels), b.sign(channels, bias=False)],
        [b.sign(channels, scale=True)],
    ]
    for steps in ends:
        b.binary_conv(bits, channels, steps=[*affine, *adds, *steps])
        for step in steps:
            if step.kind == "store":
                b.output(step.value)
            elif step.kind == "sign":
                b.output(b.binary_conv(step.value, 3, (1, 1), padding=(0, 0, 0, 0)))
    check(b.program(), pictures(41, 5, 6), exact=True)


@pytest.mark.parametrize("signs", [1, 4, 5, 7])
@pytest.mark.parametrize("channels", [5, 41, 64, 106])
def test_many_signs_of_one_map(channels, signs):
    """More of them than an epilogue keeps in registers, alone and behind a convolution."""
    b = Builder(channels)
    alone = [b.sign(channels, scale=i % 2 == 0, bias=i % 3 != 1) for i in range(signs)]
    b.elementwise(b.input, alone)
    behind = [b.sign(channels, scale=i % 2 == 1, bias=i % 3 != 2) for i in range(signs)]
    b.binary_conv(alone[0].value, channels, steps=[*behind, b.store(channels)])
    for step in alone + behind:
        b.output(b.binary_conv(step.value, 7, (1, 1), padding=(0, 0, 0, 0)))
    x = pictures(channels, 5, 7)
    x[0, :, 0, 0], x[1, :, 2, 3] = np.nan, 0.0
    check(b.program(), x, exact=True)


def test_signs_alone_know_zeros():
    b = Builder(40)
    signs = [b.sign(40, bias=False), b.sign(40, scale=True, bias=False)]
    b.elementwise(b.input, signs)
    for step in signs:
        b.output(b.binary_conv(step.value, 40, (1, 1), padding=(0, 0, 0, 0)))
    x = np.zeros((1, 40, 3, 3), np.float32)
    x[:, ::2] = -0.0
    check(b.program(), x, exact=True)


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
@pytest.mark.parametrize(
    "kernel, stride, padding", [((2, 2), (2, 2), (0, 0)), ((2, 3), (2, 3), (1, 1)), ((3, 3), (2, 2), (1, 1))]
)
@pytest.mark.parametrize("channels", [3, 41, 64, 70])
def test_batch_norm_before_pooling(kind, kernel, stride, padding, channels):
    """Scales of both signs: the maximum of scaled numbers is not the scaled maximum."""
    b = Builder(channels)
    scaled = b.elementwise(b.input, [b.affine(channels), b.store(channels)])
    pool = b.max_pool if kind == "max_pool" else b.avg_pool
    b.output(pool(scaled, kernel, stride, padding, steps=[Step("clip", min=0.0), b.store(channels)]))
    check(b.program(), pictures(channels, 9, 8), exact=kind == "max_pool")


@pytest.mark.parametrize("reader", ["output", "pool", "add"])
def test_batch_norm_before_pooling_that_others_read(reader):
    b = Builder(24)
    scaled = b.elementwise(b.input, [b.affine(24), b.store(24)])
    pooled = b.max_pool(scaled, (2, 2), (2, 2), (0, 0))
    b.output(pooled)
    if reader == "output":
        b.output(scaled)
    elif reader == "pool":
        b.output(b.max_pool(scaled, (2, 2), (2, 2), (0, 0)))
    else:
        b.output(b.elementwise(b.input, [Step("add", value=scaled), b.store(24)]))
    check(b.program(), pictures(24, 8, 8), exact=True)


def test_transition_of_a_dense_block_reads_the_joined_map():
    """The pooling's source is a concatenation that has to live until the pooling, not the affine, has read it."""
    b = Builder(20)
    whole = b.elementwise(b.input, [b.affine(20), b.store(20)])
    whole = dense_layer(b, whole, 21, 1, [])
    scaled = b.elementwise(whole, [b.affine(41), b.store(41)])
    pooled = b.max_pool(scaled, (2, 2), (2, 2), (0, 0), steps=[Step("clip", min=0.0), b.store(41)])
    b.output(b.binary_conv(b.bits(pooled), 16))
    check(b.program(), pictures(20, 12, 12), exact=True)


@st.composite
def dense_programs(draw):
    width = st.sampled_from([1, 8, 31, 32, 41, 53, 64, 70])
    channels = draw(width)
    b = Builder(channels, seed=draw(st.integers(0, 1000)))
    maps = [b.elementwise(b.input, [Step("affine", scale=integers(b, channels)), b.store(channels)])]
    for _ in range(draw(st.integers(1, 5))):
        source = draw(st.sampled_from(maps))
        c = b.channels(source)
        signs = []
        for _ in range(draw(st.integers(1, 3))):
            scale, bias = (integers(b, c), integers(b, c)) if draw(st.booleans()) else (None, None)
            signs.append(Step("sign", b.value("bits", c), scale, bias))
        b.elementwise(source, signs)
        growth = draw(width)
        parts: list[int] = []
        for sign in signs:
            steps = [Step("add", value=v) for v in parts] if draw(st.booleans()) else []
            if draw(st.booleans()):
                steps.append(Step("affine", scale=b.tensor(np.full(growth, 0.5, np.float32))))
            parts.append(b.binary_conv(sign.value, growth, steps=[*steps, b.store(growth)]))
        joined = [source, *draw(st.lists(st.sampled_from(parts), min_size=1, max_size=3))]
        maps.append(b.concat(*joined) if draw(st.booleans()) else b.concat(*reversed(joined)))
    for value in draw(st.lists(st.sampled_from(maps), min_size=1, max_size=3)):
        b.output(value)
    b.output(maps[-1])
    shape = (draw(st.sampled_from([1, 3, 5])), channels, 4, draw(st.integers(1, 6)))
    x = np.random.default_rng(0).integers(-4, 5, shape)
    return b.program(), x.astype(np.float32)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(dense_programs())
def test_random_dense_programs_are_bit_exact(case):
    program, x = case
    check(program, x, exact=True)
