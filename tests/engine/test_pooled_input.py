"""A 1x1 convolution that alone reads a pooled map pools it itself, some pixels at a time: the same numbers as apart."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from leanconv import _core
from leanconv.engine import isa_names
from leanconv.program import Program, Step
from tests.engine.builder import Builder, check, pictures

NONE = (0, 0, 0, 0)


def shortcut(
    kind: str, channels: int, out: int, *, apart: bool, pool: dict[str, Any], residual: bool = False, steps: int = 0
) -> Program:
    """Pooling, 1x1 convolution and signs. `apart`: the pooled map has a second reader and stays in memory.

    `kind`: what is pooled and read: real (fp32), bf16 (pooled from it), int8. `steps`: more of the pooling's own.
    """
    b = Builder(channels, seed=7)
    pool = dict(pool)
    operator = getattr(b, pool.pop("kind", "avg_pool"))
    source = b.elementwise(b.input, [b.affine(channels), b.store(channels, "bf16" if kind == "bf16" else "real")])
    own = [make(channels) for make in (b.affine, b.sign, b.store, b.prelu)[:steps]]
    last = b.quantize(channels, 11.7, 90) if kind == "int8" else b.store(channels)
    before = operator(source, steps=None, **pool) if residual else None  # the same size as what is added to
    pooled = operator(source, steps=[*own, last], **pool)
    added = [] if before is None else [b.conv(before, out, (3, 3))]
    if added:  # a map that dies where it is added: the sum takes its place
        b.ops.insert(-1, b.ops.pop())
    tail = [b.affine(out), *(Step("add", value=v) for v in added), b.store(out), b.sign(out)]
    conv = b.int8_conv if kind == "int8" else b.conv
    conv(pooled, out, (1, 1), tail, padding=NONE)
    b.output(tail[-2].value)
    b.output(b.binary_conv(tail[-1].value, 5))
    for step in own:
        if step.kind == "store":
            b.output(step.value)
        elif step.kind == "sign":
            b.output(b.binary_conv(step.value, 3))
    if apart:
        b.output(conv(pooled, 2, (1, 1), padding=NONE))
    return b.program()


def names(program: Program, x: np.ndarray) -> list[str]:
    return [row["name"] for row in _core.Model(program.to_bytes(), 1, "").profile([x], 1)]


def equal_to_apart(program: Program, apart: Program, x: np.ndarray) -> None:
    """Together as apart, bit for bit, on every instruction set; threads share the pixels."""
    assert not any(" + " in name for name in names(apart, x))
    assert sum(" + " in name for name in names(program, x)) == 1
    for isa in isa_names():
        want = _core.Model(apart.to_bytes(), 1, isa, grain_ns=0).run([x])
        for threads in (1, 2, 3, 7):
            model = _core.Model(program.to_bytes(), threads, isa, grain_ns=0)
            for _ in range(2):  # the second run meets the first one's leftovers in memory
                for got, expected in zip(model.run([x]), want, strict=False):
                    np.testing.assert_array_equal(got, expected, err_msg=f"{isa}, {threads} threads")


@pytest.mark.parametrize("kind", ["real", "bf16", "int8"])
@pytest.mark.parametrize(
    "pool",
    [
        {},
        {"ceil_mode": True, "count_include_pad": False},
        {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)},
        {"kernel": (3, 2), "stride": (2, 3), "padding": (1, 0), "count_include_pad": False, "ceil_mode": True},
        {"kernel": (9, 9), "stride": (2, 1), "padding": (4, 4)},  # more taps than are kept in a table
        {"kind": "max_pool"},
        {"kind": "max_pool", "kernel": (2, 2), "padding": (0, 0), "dilation": (2, 3), "stride": (1, 2)},
    ],
)
@pytest.mark.parametrize(("channels", "out"), [(5, 3), (64, 128), (70, 33)])
def test_together_as_apart(kind, pool, channels, out):
    x = pictures(channels, 23, 37, batch=1)
    make = partial(shortcut, kind, channels, out, pool=pool)
    equal_to_apart(make(apart=False), make(apart=True), x)
    check(make(apart=False), x, exact=False, threads=(1, 3), isas=isa_names()[:1])


@pytest.mark.parametrize("kind", ["real", "int8"])
@pytest.mark.parametrize("channels", [3, 256, 700])
def test_chunks(kind, channels):
    """Few pixels of many channels and many of few, all of them larger than what is pooled at a time."""
    size = {3: (300, 301), 256: (41, 39), 700: (23, 21)}[channels]
    make = partial(shortcut, kind, channels, 65, pool={})
    equal_to_apart(make(apart=False), make(apart=True), pictures(channels, *size, batch=1))


@pytest.mark.parametrize("kind", ["real", "bf16", "int8"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_pooling_has_steps_of_its_own(kind, steps):
    make = partial(shortcut, kind, 68, 20, pool={}, steps=steps)
    equal_to_apart(make(apart=False), make(apart=True), pictures(68, 17, 22, batch=1))


@pytest.mark.parametrize("kind", ["real", "int8"])
def test_a_map_is_added_in_place(kind):
    make = partial(shortcut, kind, 64, 64, pool={}, residual=True)
    equal_to_apart(make(apart=False), make(apart=True), pictures(64, 26, 27, batch=1))


def test_the_sum_does_not_take_the_place_of_the_map_that_is_pooled():
    """Of one size (stride 1): other pixels' windows are still to be read."""

    def make(apart: bool) -> Program:
        b = Builder(64, seed=2)
        source = b.elementwise(b.input, [b.affine(64), b.store(64)])
        pooled = b.avg_pool(source, (3, 3), (1, 1), (1, 1))
        out = b.conv(pooled, 64, (1, 1), [Step("add", value=source), b.store(64)], padding=NONE)
        b.output(b.elementwise(out, [b.affine(64), b.store(64)]))
        if apart:
            b.output(pooled)
        return b.program()

    equal_to_apart(make(False), make(True), pictures(64, 33, 35, batch=1))


def test_the_pooling_scales_what_it_reads():
    """An affine right before it is done on the way, and its input lives as long as the convolution."""

    def make(apart: bool) -> Program:
        b = Builder(64, seed=3)
        source = b.conv(b.input, 64, (3, 3))
        scaled = b.elementwise(source, [b.affine(64), b.store(64)])
        pooled = b.avg_pool(scaled)
        b.output(b.conv(pooled, 96, (1, 1), padding=NONE))
        if apart:
            b.output(pooled)
        return b.program()

    program, x = make(False), pictures(64, 30, 41, batch=1)
    assert names(program, x) == ["input", "conv0", "avg_pool2 + conv3", "output"]
    equal_to_apart(program, make(True), x)


@pytest.mark.parametrize("factor", [1.0, 37.3, 1e30])
@pytest.mark.parametrize("zero", [0, 117, 255])
@pytest.mark.parametrize("steps", [0, 1])
def test_whole_blocks_of_bytes(factor, zero, steps):
    """Rounding, both ends, and what is not a number, in blocks of channels and in the rest behind them."""
    b = Builder(134)
    own = [Step("affine", scale=b.tensor(np.ones(134, np.float32)))][:steps]
    made = b.avg_pool(b.input, (1, 1), (1, 1), steps=[*own, b.quantize(134, factor, zero)])
    eye = np.eye(134, dtype=np.int8)[:, None, None]
    b.output(b.int8_conv(made, 134, (1, 1), padding=NONE, weight=eye))
    x = np.round(pictures(134) * 300) / 2
    x[0, [0, 63, 64, 130], 0, :8] = [np.nan, np.inf, -np.inf, 1e38, -1e38, -0.0, 2.0**31, -(2.0**31)]
    check(b.program(), x, exact=True)


def test_several_pictures_and_threads():
    program = shortcut("int8", 64, 128, apart=False, pool={})
    x = pictures(64, 28, 28, batch=5)
    want = np.concatenate([_core.Model(program.to_bytes(), 1, "").run([x[i : i + 1]])[0] for i in range(5)])
    for threads in (1, 2, 4):
        np.testing.assert_array_equal(_core.Model(program.to_bytes(), threads, "").run([x])[0], want)


def test_profile_names_both_operators_and_counts_the_convolution():
    b = Builder(8)
    b.output(b.conv(b.max_pool(b.input), 16, (1, 1), padding=NONE))
    model = _core.Model(b.program().to_bytes(), 1, "")
    rows = model.profile([pictures(8, 12, 14)], 1)
    assert [row["name"] for row in rows] == ["input", "max_pool0 + conv1", "output"]
    assert (rows[1]["kind"], rows[1]["macs_real"]) == ("conv", 2 * 6 * 7 * 8 * 16)


@pytest.mark.parametrize("case", ["3x3", "stride", "padding", "groups", "second reader", "one pixel", "large weights"])
def test_what_stays_apart(case):
    b = Builder(32, seed=1)
    x = pictures(32, 8, 9, batch=1)
    pooled = b.avg_pool(b.input, **({"kernel": (8, 8), "stride": (8, 8)} if case == "one pixel" else {}))
    b.output(
        b.conv(
            pooled,
            6000 if case == "large weights" else 64,
            (3, 3) if case == "3x3" else (1, 1),
            stride=(2, 1) if case == "stride" else (1, 1),
            padding=(1, 1, 1, 1) if case in ("3x3", "padding") else NONE,
            groups=2 if case == "groups" else 1,
        )
    )
    if case == "second reader":
        b.output(pooled)
    program = b.program()
    assert not any(" + " in name for name in names(program, x))
    check(program, x, exact=False)


def test_bands_come_first():
    """A convolution, a pooling that the first one does in bands, and a 1x1 convolution behind it."""
    b = Builder(3, seed=4)
    stem = b.conv(b.input, 24, (5, 3), padding=(2, 1, 2, 1))
    b.output(b.conv(b.max_pool(stem), 40, (1, 1), padding=NONE))
    program = b.program()
    assert names(program, pictures(3, 90, 101)) == ["input", "conv0 + max_pool1", "conv2", "output"]
    assert names(program, pictures(3, 20, 21)) == ["input", "conv0", "max_pool1 + conv2", "output"]
    for size in ((90, 101), (20, 21)):
        check(program, pictures(3, *size, batch=1), exact=False, threads=(1, 3))


def test_a_pooling_behind_the_convolution_comes_first():
    b = Builder(16, seed=4)
    conv = b.conv(b.avg_pool(b.input), 48, (1, 1), padding=NONE)
    b.output(b.max_pool(conv))
    program, x = b.program(), pictures(16, 120, 121, batch=1)
    assert names(program, x) == ["input", "avg_pool0", "conv1 + max_pool2", "output"]
    check(program, x, exact=False, threads=(1, 3))
