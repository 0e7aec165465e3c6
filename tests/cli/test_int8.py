"""`leanconv compile --real-layers int8`: from a checkpoint to predictions, and what it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from leanconv.cli.calibration import read_calibration
from leanconv.cli.errors import CommandError
from leanconv.preprocess import Preprocessing
from leanconv.program import Program


@pytest.fixture(scope="module")
def int8(leanconv, tmp_path_factory):
    """The digits network that ships with int8 layers, and what the command printed."""
    path = tmp_path_factory.mktemp("int8") / "digits.lconv"
    command = ("compile", "bireal_digits", "-o", path, "--real-layers", "int8", "--calibrate", "digits")
    return path, leanconv(*command).stdout


def test_compile_tells_what_int8_changes(int8):
    path, text = int8
    assert re.search(r"int8: 4 of 4 real-valued layers; the class of fp32 on \d+ of 64 calibration pictures", text)
    assert re.search(r"largest difference of an output \d+\.\d % of the largest output", text)
    program = Program.load(path)
    assert sum(op.kind == "int8_conv" for op in program.ops) == 4 and not any(op.kind == "conv" for op in program.ops)


def test_the_shipped_network_keeps_its_accuracy(int8):
    before, after = map(
        float, re.search(r"450 test pictures: (0\.\d{4}) in fp32, (0\.\d{4}) in int8", int8[1]).groups()
    )
    assert before > 0.95 and after > before - 0.01


def test_run_eval_info_and_bench(int8, leanconv, pictures):
    path, text = int8
    rows = json.loads(leanconv("run", path, pictures, "--json", "--top", 1).stdout)
    assert len(rows) == 3 and all(row["top"] for row in rows)
    measured = json.loads(leanconv("eval", path, "--data", "digits", "--json").stdout)
    assert f"{measured['top1']:.4f} in int8" in text
    counts = json.loads(leanconv("info", path, "--json").stdout)
    stem = counts["layers"][0]
    assert (stem["kind"], counts["stem"]) == ("int8_conv", "conv1") and stem["macs_real"] > 0
    result = json.loads(leanconv("bench", path, "--rounds", 1, "--json", "-").stdout)
    assert result["real_layers"] == "int8" and result["engine_ms"] > 0


def test_calibration_on_a_folder_of_pictures(pictures):
    rules = Preprocessing((1, 8, 8), (0.5,), (0.5,))
    found = read_calibration([str(pictures)], rules)
    assert found.pictures.shape == (3, 8, 8, 1) and found.pictures.dtype == np.uint8 and found.test is None
    found = read_calibration([str(pictures / "a.png")] * 100, rules)
    assert found.pictures.shape == (64, 8, 8, 1)


def test_calibration_on_labelled_data(tmp_path):
    labelled = read_calibration(["digits"], Preprocessing((1, 8, 8), (0.5,), (0.5,)))
    assert labelled.pictures.shape == (64, 8, 8, 1) and len(labelled.test) == 450
    rgb = tmp_path / "rgb.npz"
    arrays = {f"x_{part}": np.zeros((4, 8, 8, 3), np.uint8) for part in ("train", "test")}
    np.savez(rgb, **arrays, y_train=np.arange(4), y_test=np.arange(4))
    assert read_calibration([str(rgb)], Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)).pictures.shape == (4, 8, 8, 3)
    with pytest.raises(CommandError, match=r"3 channel\(s\), the network takes 1"):
        read_calibration([f"npz:{rgb}"], Preprocessing((1, 8, 8), (0.5,), (0.5,)))


def test_errors(checkpoint, int8, packed, error, leanconv, tmp_path):
    out = tmp_path / "m.lconv"
    command = ("compile", checkpoint, "-o", out)
    assert "--calibrate FOLDER" in error(*command, "--real-layers", "int8")
    assert "--real-layers int8" in error(*command, "--calibrate", "digits")
    assert "No such file" in error(*command, "--real-layers", "int8", "--calibrate", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no pictures" in error(*command, "--real-layers", "int8", "--calibrate", tmp_path / "empty")
    assert "No such file" in error("compile", "no_such_network", "-o", out)
    assert not out.exists()
    assert "compare their accuracy" in error("eval", int8[0], "--data", "digits", "--against", checkpoint)
    assert "compiled with fp32 layers" in error("bench", packed, "--real-layers", "int8")
    leanconv(*command, "--real-layers", "int4", code=2)
    assert "--real-maps bf16 goes with --real-layers int8" in error(*command, "--real-maps", "bf16")


def test_maps_in_bf16(int8, leanconv, tmp_path):
    path = tmp_path / "digits.lconv"
    command = ("compile", "bireal_digits", "-o", path, "--real-layers", "int8", "--calibrate", "digits")
    text = leanconv(*command, "--real-maps", "bf16").stdout
    assert re.search(r"4 of 4 real-valued layers; [1-9]\d* real maps in bf16; the class of fp32", text)
    before, after = map(float, re.search(r"(0\.\d{4}) in fp32, (0\.\d{4}) in int8 with bf16 maps", text).groups())
    assert f"{before:.4f} in fp32" in int8[1] and after > before - 0.01
    measured = json.loads(leanconv("eval", path, "--data", "digits", "--json").stdout)
    assert f"{measured['top1']:.4f} in int8 with bf16 maps" in text
    assert Program.load(path).provenance["real_maps"] == "bf16"
