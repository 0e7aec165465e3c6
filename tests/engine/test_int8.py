"""Convolutions in int8 on bytes against the oracle: exact on every instruction set."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from leanconv import _core, engine
from leanconv.engine import reference
from leanconv.program import Program, ProgramError, Step
from tests.engine.builder import Builder, check, pictures


def bytes_of(channels: int, height: int = 13, width: int = 10, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)


def test_the_oracle_is_the_definition():
    b = Builder(3, seed=4)
    b.byte_input([7, 130, 255])
    b.output(b.int8_conv(b.input, 5, (3, 2), padding=(1, 2, 0, 1), stride=(2, 1), dilation=(1, 2)))
    program, x = b.program(), bytes_of(3, 6, 7, 1)
    (got,) = reference.run(program, [x])
    weight = program.tensors["t0"].astype(int)
    zero = np.array([7, 130, 255])
    for o, y, column in np.ndindex(*got.shape[1:]):
        total = 0
        for ky, kx in np.ndindex(3, 2):
            at = y * 2 - 1 + ky, column - 2 + kx * 2
            if 0 <= at[0] < 6 and 0 <= at[1] < 7:
                total += int(((x[0, at[0], at[1]].astype(int) - zero) * weight[o, ky, kx]).sum())
        assert got[0, o, y, column] == total


@pytest.mark.parametrize("channels", [1, 3, 4, 17, 64])
@pytest.mark.parametrize("out", [1, 16, 33, 64, 100])
def test_shapes(channels, out):
    for kernel, stride, dilation, padding in itertools.product(
        [(1, 1), (3, 3), (2, 5)], [(1, 1), (2, 3)], [(1, 1), (2, 2)], [(0, 0, 0, 0), (1, 2, 3, 0)]
    ):
        b = Builder(channels, seed=channels * out)
        b.byte_input([3] if channels == 4 else list(range(channels)))
        b.output(b.int8_conv(b.input, out, kernel, stride=stride, dilation=dilation, padding=padding))
        check(b.program(), bytes_of(channels, 11, 9), exact=True, threads=(1,))


def test_sums_at_the_limit_of_32_bits():
    b = Builder(1 << 16)
    b.byte_input([0])
    weight = np.full((3, 1, 1, 1 << 16), -128, np.int8)
    weight[1], weight[2] = 127, np.resize([127, -128], 1 << 16)
    b.output(b.int8_conv(b.input, 3, (1, 1), padding=(0,) * 4, weight=weight))
    x = np.stack([np.full((1, 1, 1 << 16), 255, np.uint8), np.zeros((1, 1, 1 << 16), np.uint8)])
    check(b.program(), x, exact=True)


@pytest.mark.parametrize("factor", [1.0, 0.5, 37.3, 1e30])
@pytest.mark.parametrize("zero", [0, 117, 255])
@pytest.mark.parametrize("channels", [3, 16, 70])
def test_quantize(factor, zero, channels):
    b = Builder(channels)
    made = b.bytes(b.input, factor, zero)
    eye = np.eye(channels, dtype=np.int8)[:, None, None]
    b.output(b.int8_conv(made, channels, (1, 1), padding=(0,) * 4, weight=eye))
    x = np.round(pictures(channels) * 300) / 2
    x[0, 0, 0, :6] = [np.nan, np.inf, -np.inf, 1e38, -1e38, -0.0]
    check(b.program(), x, exact=True)


def test_quantize_rounds_half_to_even_and_saturates():
    b = Builder(1)
    value = b.bytes(b.input, 1.0, 10)
    b.output(b.int8_conv(value, 1, (1, 1), padding=(0,) * 4, weight=np.ones((1, 1, 1, 1), np.int8)))
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -10.5, -11, 244.5, 245.5, 1e9], np.float32)
    for isa in engine.isa_names():
        got = engine.Model(b.program().to_bytes(), isa=isa)(x.reshape(1, 1, 1, -1))
        assert got.ravel().tolist() == [0, 2, 2, 0, -2, -10, -10, 244, 245, 245]


def test_quantize_beside_other_steps_leaves_the_value_unchanged():
    b = Builder(20, seed=3)
    small = np.random.default_rng(0).integers(-3, 4, (40, 1, 1, 20)).astype(np.float32)
    steps = [b.quantize(40, 0.7, 9), b.store(40), b.sign(40), Step("clip", min=0.0), b.quantize(40, 1.0, 0)]
    b.conv(b.input, 40, (1, 1), steps, padding=(0,) * 4, weight=small)
    for step in steps:
        if step.kind == "quantize":
            b.output(b.int8_conv(step.value, 7))
        elif step.kind == "store":
            b.output(step.value)
    b.output(b.binary_conv(steps[2].value, 8))
    check(b.program(), np.round(pictures(20) * 4), exact=True)


@pytest.mark.parametrize("size", [(37, 41), (120, 90)])
@pytest.mark.parametrize("out", [20, 64])
def test_stem_with_pooling(size, out):
    """Large maps are pooled in bands."""
    b = Builder(3, seed=8)
    b.byte_input([124, 116, 104])
    affine = Step(
        "affine", scale=b.tensor(np.full(out, 2.0**-9, np.float32)), bias=b.tensor(np.arange(out).astype(np.float32))
    )
    stem = b.int8_conv(b.input, out, (7, 7), [affine, b.store(out)], stride=(2, 2), padding=(3, 3, 3, 3))
    steps = [b.store(out), b.sign(out)]
    b.max_pool(stem, steps=steps)
    b.output(steps[0].value)
    b.output(b.binary_conv(steps[1].value, 8))
    check(b.program(), bytes_of(3, *size), exact=True)


SMALL = (20, 21)


def pooled_stem(out: int, steps, **pool) -> Builder:
    """A stem of int8 with `steps` of its own, a pooling that stores and takes signs, a binary convolution."""
    b = Builder(3, seed=out)
    b.byte_input([124, 116, 104])
    map_ = b.int8_conv(b.input, out, (5, 5), [*steps(b), b.store(out)], stride=(2, 2), padding=(2, 2, 2, 2))
    after = [b.store(out), b.sign(out)]
    b.max_pool(map_, steps=after, **pool)
    b.output(after[0].value)
    b.output(b.binary_conv(after[1].value, 8))
    return b


def scaled(out: int, *rest: Step, wild: bool = False):
    """An affine whose scales have both signs (and, `wild`, an infinite one), then the rest."""

    def steps(b: Builder) -> list[Step]:
        scale = np.resize(np.float32([2.0**-7, -(2.0**-9), 0.0, 1.0, -3.0]), out)
        if wild:
            scale[0] = np.inf
        return [Step("affine", scale=b.tensor(scale), bias=b.tensor(np.arange(out, dtype=np.float32) - 9)), *rest]

    return steps


@pytest.mark.parametrize("out", [20, 64, 100])
@pytest.mark.parametrize("size", [(1, 1), (9, 8), (22, 37), (65, 71)])
@pytest.mark.parametrize(
    "rest", [(), (Step("clip", min=0.0),), (Step("clip", min=-7.5, max=6.0),)], ids=["plain", "relu", "clip"]
)
def test_sums_are_pooled_before_steps_that_keep_or_reverse_their_order(out, size, rest):
    check(pooled_stem(out, scaled(out, *rest), padding=(1, 1)).program(), bytes_of(3, *size), exact=True)


def fused(b: Builder) -> bool:
    """Bands are for large maps; sums are pooled in maps of any size."""
    profile = _core.Model(b.program().to_bytes(), 1, "").profile([bytes_of(3, *SMALL)], 1)
    return "int8_conv0 + max_pool1" in [row["name"] for row in profile]


def test_which_stems_are_pooled_with_their_convolution():
    assert fused(pooled_stem(24, scaled(24), padding=(1, 1)))
    assert fused(pooled_stem(24, lambda b: [], padding=(1, 1)))
    others = [
        pooled_stem(24, scaled(24, wild=True), padding=(1, 1)),
        pooled_stem(24, lambda b: [b.prelu(24)], padding=(1, 1)),
        pooled_stem(24, lambda b: [*scaled(24)(b), *scaled(24)(b)], padding=(1, 1)),
        pooled_stem(24, scaled(24), kernel=(2, 2), padding=(0, 0)),
        pooled_stem(24, scaled(24), stride=(1, 2), padding=(1, 1)),
        pooled_stem(24, scaled(24), padding=(0, 0)),
    ]
    for b in others:
        assert not fused(b)
        check(b.program(), bytes_of(3, *SMALL), exact=True)


def test_pooled_sums_of_several_threads():
    b = pooled_stem(100, scaled(100), padding=(1, 1))
    x = bytes_of(3, 75, 61, batch=1)
    want = reference.run(b.program(), [x])
    for threads in (2, 3, 7):
        got = _core.Model(b.program().to_bytes(), threads, "", grain_ns=0).run([x])
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, other)


def test_two_readers_of_one_map_with_different_padding():
    b = Builder(6, seed=2)
    made = b.bytes(b.input, 20.0, 130)
    b.output(b.int8_conv(made, 5, (3, 3)))
    b.output(b.int8_conv(made, 5, (5, 1), padding=(2, 0, 2, 0)))
    b.output(b.int8_conv(made, 5, (1, 1), padding=(0,) * 4, stride=(2, 2)))
    check(b.program(), pictures(6), exact=True)


def test_frames_stay_zero_points_between_sizes_and_pictures():
    b = Builder(3, seed=5)
    b.byte_input([200])
    b.output(b.int8_conv(b.input, 9))
    model = engine.Model(b.program().to_bytes())
    for size in ((9, 8), (5, 6), (9, 8)):
        x = bytes_of(3, *size, batch=5)
        np.testing.assert_array_equal(model(x), reference.run(b.program(), [x])[0])


def test_only_bytes_enter_a_network_whose_first_layer_computes_in_int8():
    b = Builder(3)
    b.byte_input([0])
    b.output(b.int8_conv(b.input, 4))
    program = b.program()
    model = engine.Model(program.to_bytes())
    with pytest.raises(ProgramError, match=r"takes uint8 pictures \[N, H, W, 3\]; given was float32 .*int8"):
        model(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(ProgramError, match=r"given was uint8 \[1, 3, 8, 8\]"):
        model(np.zeros((1, 3, 8, 8), np.uint8))
    with pytest.raises(ProgramError, match="uint8 pictures N,H,W,C"):
        reference.run(program, [np.zeros((1, 3, 8, 8), np.float32)])


def test_a_file_is_read_back_whole(tmp_path):
    b = Builder(5, seed=1)
    b.output(b.int8_conv(b.bytes(b.input, 3.25, 120), 7))
    program = b.program()
    program.save(tmp_path / "m.lconv")
    again = Program.load(tmp_path / "m.lconv")
    assert again.to_bytes() == program.to_bytes() and again.values == program.values
    assert [t.dtype for t in again.tensors.values()] == [np.int8]
