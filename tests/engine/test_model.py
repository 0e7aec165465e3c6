"""The Python side of the engine: loading, arguments, errors, profile."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from leanconv import _core, engine
from leanconv.program import ProgramError, Step
from tests.engine.builder import Builder, pictures


def network(**size):
    b = Builder(3, **size)
    b.preprocessing = {"input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    real = b.conv(b.input, 64, (3, 3), [b.affine(64), b.store(64), b.sign(64)])
    out = b.binary_conv(real, 64, steps=[b.affine(64), Step("add", value=b.ops[0].steps[1].value), b.store(64)])
    b.output(b.linear(b.global_avg_pool(out), 10), 2)
    return b.program()


def test_load_and_describe(tmp_path):
    path = tmp_path / "a.lconv"
    size = network().save(path)
    model = engine.load(path)
    assert model.threads == _core.available_cores() and model.isa == engine.isa()
    assert [i.name for i in model.inputs] == ["input0"] and model.inputs[0].height is None
    assert [o.name for o in model.outputs] == ["output0"]
    assert model.program_info["bytes"] == size
    assert model.program_info["preprocessing"]["input_size"] == [3, 32, 32]
    assert model.program_info["provenance"] == {"model": "test"}
    assert repr(model).startswith("Model(input0 [N, 3, H, W] -> output0;")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3, 8, 8)), "not float64"),
        (np.zeros((1, 3, 8, 8), np.int64), "not int64"),
        (
            np.zeros((3, 8, 8), np.float32),
            r"takes float32 \[N, 3, H, W\] or uint8 pictures \[N, H, W, 3\]; given was float32 \[3, 8, 8\]",
        ),
        (np.zeros((1, 4, 8, 8), np.float32), r"given was float32 \[1, 4, 8, 8\]"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"given was uint8 \[1, 3, 8, 8\]"),
        (np.zeros((1, 3, 0, 8), np.float32), r"given was float32 \[1, 3, 0, 8\]"),
        (np.float32(3), "given was float32"),
    ],
)  # fmt: skip
def test_wrong_arrays(x, message):
    model = engine.Model(network().to_bytes())
    with pytest.raises(ProgramError, match=message) as caught:
        model(x)
    assert "\n" not in str(caught.value)


def test_fixed_size_and_missing_preprocessing():
    program = network(size=(16, None))
    model = engine.Model(program.to_bytes())
    with pytest.raises(ProgramError, match=r"\[N, 3, 16, W\]"):
        model(pictures(3, 17, 16))
    assert model(pictures(3, 16, 9)).shape == (2, 10)
    program.preprocessing = None
    with pytest.raises(ProgramError, match="compiled without a mean and std"):
        engine.Model(program.to_bytes())(np.zeros((1, 16, 16, 3), np.uint8))


def test_wrong_number_and_names_of_inputs():
    model = engine.Model(network().to_bytes())
    with pytest.raises(ProgramError, match="takes 1 inputs"):
        model()
    with pytest.raises(ProgramError, match="takes 1 inputs"):
        model(pictures(3), pictures(3))
    with pytest.raises(ProgramError, match="inputs are \\['input0'\\]"):
        model({"image": pictures(3)})


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_wrong_threads(threads):
    with pytest.raises(ProgramError, match="give a number from 1 on"):
        engine.Model(network().to_bytes(), threads)


def test_unknown_instruction_set():
    with pytest.raises(ProgramError, match=r"'mmx' was not built or this processor lacks it; choose from: .*portable"):
        engine.Model(network().to_bytes(), isa="mmx")


@pytest.mark.parametrize("isa", engine.isa_names())
def test_instruction_set_from_the_environment(isa, tmp_path):
    network().save(tmp_path / "a.lconv")
    code = "import sys; from leanconv import engine; print(engine.load(sys.argv[1]).isa, engine.isa())"
    run = [sys.executable, "-c", code, str(tmp_path / "a.lconv")]
    done = subprocess.run(run, env={**os.environ, "LEANCONV_ISA": isa}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [isa, isa]
    bad = subprocess.run(run, env={**os.environ, "LEANCONV_ISA": "mmx"}, capture_output=True, text=True)
    assert bad.returncode and "choose from" in bad.stderr.splitlines()[-1]


def test_strided_and_fortran_arrays_are_copied():
    model = engine.Model(network().to_bytes())
    x = pictures(3, 8, 8)
    want = model(x)
    np.testing.assert_array_equal(model(np.asfortranarray(x)), want)
    np.testing.assert_array_equal(model(np.repeat(x, 2, axis=0)[::2]), want)


def test_sizes_that_do_not_fit():
    b = Builder(8)
    b.output(b.conv(b.input, 4, (5, 5), padding=(0, 0, 0, 0)))
    model = engine.Model(b.program().to_bytes())
    with pytest.raises(ProgramError, match="conv0: an input of 4x9 is too small for this conv"):
        model(pictures(8, 4, 9))


def test_huge_pictures_are_refused_before_memory_is_taken():
    b = Builder(1)
    wide = b.conv(b.input, 4096, (1, 1), padding=(0, 0, 0, 0))
    b.output(b.global_avg_pool(b.conv(wide, 1, (1, 1), padding=(0, 0, 0, 0))), 2)
    model = engine.Model(b.program().to_bytes())
    with pytest.raises(ProgramError, match="too large"):
        model(np.zeros((1, 1, 1024, 1024), np.float32))
    with pytest.raises(ProgramError, match="too large"):
        model(np.zeros((1, 1, 1, 1 << 21), np.float32))


def test_transposed_convolutions_cannot_blow_up():
    b = Builder(1)
    value = b.input
    for _ in range(8):
        value = b.binary_conv_transpose(b.bits(value), 1, (1, 1), stride=(60, 60), padding=(0, 0))
    b.output(value)
    with pytest.raises(ProgramError, match="too large"):
        engine.Model(b.program().to_bytes())(np.zeros((1, 1, 9, 9), np.float32))


def test_profile():
    model = engine.Model(network().to_bytes(), 1)
    rows = model.profile(pictures(3, 16, 12, batch=3), repeats=3)
    assert [r["kind"] for r in rows] == ["input", "conv", "binary_conv", "global_avg_pool", "linear", "output"]
    by_kind = {r["kind"]: r for r in rows}
    assert by_kind["conv"]["macs_real"] == 3 * 16 * 12 * 64 * 3 * 9 and by_kind["conv"]["macs_binary"] == 0
    assert by_kind["binary_conv"]["macs_binary"] == 3 * 16 * 12 * 64 * 64 * 9
    assert by_kind["linear"]["macs_real"] == 3 * 640
    assert all(r["ms"] >= 0 for r in rows) and by_kind["conv"]["ms"] > 0
    assert set(engine.profile.by_kind(rows)) == set(by_kind)


def test_import_needs_no_torch():
    code = "import sys, leanconv.engine; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_many_sizes_reuse_and_drop_plans():
    model = engine.Model(network().to_bytes(), 1)
    first = [model(pictures(3, 4 + i, 5)) for i in range(40)]
    for i in (39, 0, 20):
        np.testing.assert_array_equal(model(pictures(3, 4 + i, 5)), first[i])
