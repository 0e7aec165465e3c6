"""Every command end to end, as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from leanconv.shipped import weights

INFO_KEYS = {
    "parameters_binary",
    "parameters_real",
    "macs_binary",
    "macs_real",
    "ops",
    "ops_without_stem",
    "depth",
    "bytes_memory",
    "bytes_packed",
}


def test_help_and_version(leanconv):
    text = leanconv("--help").stdout
    for command in ("demo", "train", "eval", "compile", "export", "run", "info", "bench", "results", "list"):
        assert f" {command} " in text
        assert "Usage" in leanconv(command, "--help").stdout
    assert leanconv("--version").stdout.startswith("leanconv ")


def test_usage_errors_exit_with_2(leanconv):
    assert "No such option" in leanconv("run", "--nonsense", code=2).stderr
    assert "int4" in leanconv("compile", "a", "-o", "b", "--real-layers", "int4", code=2).stderr
    leanconv("compile", code=2)


def test_run(leanconv, packed, pictures, checkpoint):
    rows = json.loads(leanconv("run", packed, pictures, "--json", "--top", 3).stdout)
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b.jpg", "c.png"]
    for row in rows:
        assert [set(entry) for entry in row["top"]] == [{"class", "index", "probability"}] * 3
        assert all(entry["class"] == f"digit {entry['index']}" for entry in row["top"])
        probabilities = [entry["probability"] for entry in row["top"]]
        assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1 + 1e-9
    lines = leanconv("run", packed, pictures / "a.png", pictures / "b.jpg", "--threads", 1).stdout.splitlines()
    assert len(lines) == 2 and all(rows[i]["top"][0]["class"] in line for i, line in enumerate(lines))

    import torch

    from leanconv.networks import from_checkpoint
    from leanconv.preprocess import normalize, read_pictures

    network = from_checkpoint(checkpoint)
    seen = read_pictures([row["path"] for row in rows], network.rules)
    with torch.no_grad():
        expected = network.model(torch.from_numpy(normalize(seen, network.rules))).softmax(1)
    for row, values in zip(rows, expected, strict=True):
        for entry in row["top"]:
            assert entry["probability"] == pytest.approx(float(values[entry["index"]]), abs=1e-4)


def test_run_goes_on_after_an_unreadable_picture(leanconv, packed, pictures, tmp_path):
    shutil.copy(pictures / "a.png", tmp_path / "2.png")
    (tmp_path / "1.png").write_text("no picture")
    result = leanconv("run", packed, tmp_path, code=1)
    assert "2.png" in result.stdout and "1.png" not in result.stdout
    assert result.stderr == f"error: {tmp_path / '1.png'}: not a picture that can be read " + (
        "(PNG, JPEG, WebP, BMP, GIF, TIFF, PPM)\n"
    )
    rows = json.loads(leanconv("run", packed, tmp_path, "--json", code=1).stdout)
    assert "error" in rows[0] and "top" in rows[1]


@pytest.mark.parametrize("what", ["checkpoint", "packed", "name"])
def test_info(leanconv, what, packed, checkpoint):
    target = {"checkpoint": checkpoint, "packed": packed, "name": "bireal_digits"}[what]
    counts = json.loads(leanconv("info", target, "--json").stdout)
    assert set(counts) >= INFO_KEYS | {"layers", "size", "stem"}
    assert counts["ops"] == pytest.approx(counts["macs_real"] + counts["macs_binary"] / 64)
    assert counts["parameters_binary"] % 9 == 0 and counts["parameters_binary"] > counts["parameters_real"]
    assert 0 < counts["ops_without_stem"] < counts["ops"]
    if what == "packed":
        assert counts["bytes_packed"] == packed.stat().st_size
        text = leanconv("info", target).stdout
        assert f"{counts['parameters_binary']:,}" in text and f"{counts['macs_binary']:,}" in text


def test_compile_writes_what_the_checkpoint_says(packed):
    from leanconv import engine

    model = engine.load(packed)
    assert model.program_info["classes"] == [f"digit {i}" for i in range(10)]
    assert model.program_info["provenance"]["model"] == "bireal_digits"
    assert list(model.program_info["preprocessing"]["input_size"]) == [1, 8, 8]


def test_eval_of_checkpoint_and_packed_file_agree(leanconv, checkpoint, packed):
    ours = json.loads(leanconv("eval", packed, "--data", "digits", "--json").stdout)
    torchs = json.loads(leanconv("eval", checkpoint, "--data", "digits", "--json").stdout)
    assert ours["pictures"] == torchs["pictures"] == 450
    assert ours["top1"] == torchs["top1"] and ours["top5"] == torchs["top5"]


def test_train_a_little(leanconv, tmp_path):
    out = tmp_path / "run"
    text = leanconv("train", "digits/bireal_digits", "--set", "epochs=1", "--set", "expect=null", "--out", out).stdout
    assert str(out / "checkpoint.safetensors") in text
    assert (out / "checkpoint.safetensors").is_file() and (out / "log.jsonl").is_file()


def test_export(leanconv, checkpoint, tmp_path):
    import onnx
    import onnxruntime
    import torch

    from leanconv.networks import from_checkpoint

    path = tmp_path / "digits.onnx"
    leanconv("export", checkpoint, "-o", path)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    network = from_checkpoint(checkpoint)
    for count in (1, 3):
        pictures = network.example(count=count)
        with torch.no_grad():
            expected = network.model(pictures).numpy()
        got = session.run(None, {session.get_inputs()[0].name: pictures.numpy()})[0]
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_list(leanconv):
    listed = json.loads(leanconv("list", "--json").stdout)
    twins = {model["name"]: model["float_twin"] for model in listed["models"]}
    assert twins["bireal_resnet18"] == "resnet18"
    assert "digits/bireal_digits" in listed["recipes"] and "digits" in listed["data"]
    assert listed["weights"] == {name: path.stat().st_size for name, path in weights().items()}
    lines = [line.split() for line in leanconv("list").stdout.splitlines()]
    stated = listed["recipes"]["digits/bireal_digits"]["expect"]["top1"]
    assert ["digits/bireal_digits", "top-1", f"{stated:.4f}"] in lines
    published = listed["recipes"]["imagenet/bireal_resnet18"]["published"]["top1"]
    assert ["imagenet/bireal_resnet18", "published", "top-1", f"{published:.4f},", "not", "yet", "measured"] in lines


def test_python_m_leanconv():
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "leanconv", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("leanconv ")
