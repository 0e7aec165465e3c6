"""What people get when something is wrong: one line that says what to do, exit code 1, and nothing half-written."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("command", "keep"),
    [("run", 0), ("run", 5), ("run", 100), ("run", -1), ("info", -1), ("bench", -1), ("eval", -1)],
)
def test_truncated_file(error, packed, pictures, tmp_path, command, keep):
    path = tmp_path / "short.lconv"
    path.write_bytes(packed.read_bytes()[:keep])
    more = {"run": [pictures], "eval": ["--data", "digits"]}.get(command, [])
    assert "short.lconv" in error(command, path, *more)
    assert files_in(tmp_path) == ["short.lconv"]


@pytest.mark.parametrize("place", ["weights", "program", "header length"])
def test_flipped_bit(error, packed, pictures, tmp_path, place):
    data = bytearray(packed.read_bytes())
    header = struct.unpack("<Q", data[:8])[0]
    at = {"weights": 8 + header + 1, "program": data.index(b"binary_conv") + 3, "header length": 5}[place]
    data[at] ^= 4
    path = tmp_path / "flipped.lconv"
    path.write_bytes(data)
    text = error("run", path, pictures)
    assert "flipped.lconv" in text
    if place != "header length":
        assert "damaged" in text or "sha" in text.lower() or "checksum" in text.lower()


def test_every_byte_of_the_weights_is_covered(packed, tmp_path):
    from leanconv import engine

    data = bytearray(packed.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for at in np.linspace(start, len(data) - 1, 25).astype(int):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        path = tmp_path / "flipped.lconv"
        path.write_bytes(damaged)
        with pytest.raises(ValueError):
            engine.load(path)


@pytest.mark.parametrize("kind", ["text", "zeros", "checkpoint", "onnx"])
def test_foreign_file(error, pictures, checkpoint, tmp_path, kind):
    path = tmp_path / "foreign.lconv"
    path.write_bytes(
        {
            "text": b"no network at all, just a line of text\n",
            "zeros": bytes(4096),
            "checkpoint": checkpoint.read_bytes(),
            "onnx": b"\x08\x0a\x12\x07pytorch" + bytes(200),
        }[kind]
    )
    assert "foreign.lconv" in error("run", path, pictures)
    assert "foreign.lconv" in error("info", path)


def test_missing_files(error, packed, pictures, tmp_path):
    assert "absent.lconv" in error("run", tmp_path / "absent.lconv", pictures)
    assert "absent.safetensors" in error("info", tmp_path / "absent.safetensors")
    assert "absent.safetensors" in error("compile", tmp_path / "absent.safetensors", "-o", tmp_path / "x.lconv")
    assert "no such recipe" in error("train", tmp_path / "absent.yaml", "--out", tmp_path / "out")
    assert "no pictures in this folder" in error("run", packed, tmp_path)
    assert files_in(tmp_path) == []


def test_damaged_checkpoint(error, checkpoint, tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-100])
    assert "damaged" in error("compile", path, "-o", tmp_path / "x.lconv")
    assert files_in(tmp_path) == ["short.safetensors"]


def test_targets_that_cannot_be_written(error, checkpoint, tmp_path):
    assert "must end in .lconv" in error("compile", checkpoint, "-o", tmp_path / "x.bin")
    assert "no such folder" in error("compile", checkpoint, "-o", tmp_path / "absent" / "x.lconv")
    assert "must end in .onnx" in error("export", checkpoint, "-o", tmp_path / "x.lconv")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("epoch: 3", "did you mean 'epochs'?"),
        ("epochs: three", "epochs"),
        ("model: bireal_digit", "did you mean 'bireal_digits'?"),
        ("data: digit", "digits, npz:PATH"),
        ("batch_size: [", "not valid YAML"),
    ],
)
def test_recipe_with_a_typo(error, tmp_path, entry, expected):
    lines = {"model": "bireal_digits", "data": "digits", "epochs": "1", "learning_rate": "0.01"}
    lines.pop(entry.partition(":")[0], None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()) + entry + "\n")
    assert expected in error("train", recipe, "--out", tmp_path / "out")
    assert files_in(tmp_path) == ["recipe.yaml"]


def test_override_with_a_typo(error, tmp_path):
    text = error("train", "digits/bireal_digits", "--set", "augment.shfit=1", "--out", tmp_path / "out")
    assert "did you mean 'shift'?" in text
    assert files_in(tmp_path) == []


def test_picture_that_is_none(error, packed, tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no picture")
    assert "text.png: not a picture" in error("run", packed, path)
    assert "absent.png: no such file" in error("run", packed, tmp_path / "absent.png")


def test_wrong_tensor_shape(error, packed, checkpoint, tmp_path):
    from leanconv import engine

    model = engine.load(packed)
    for wrong in ((1, 3, 8, 8), (8, 8), (1, 1, 8), (1, 1, 1, 8, 8)):
        with pytest.raises(ValueError) as caught:
            model(np.zeros(wrong, np.float32))
        assert len(str(caught.value).splitlines()) == 1 and str(list(wrong))[1:-1] in str(caught.value)
    arrays = {
        "x_train": np.zeros((4, 8, 8, 3), np.uint8),
        "y_train": np.arange(4),
        "x_test": np.zeros((4, 8, 8, 3), np.uint8),
        "y_test": np.arange(4),
    }
    np.savez(tmp_path / "colour.npz", **arrays)
    for target in (packed, checkpoint):
        text = error("eval", target, "--data", f"npz:{tmp_path / 'colour.npz'}")
        assert "takes pictures of 1 channel(s)" in text and "have 3" in text


def test_operator_that_cannot_be_lowered(error, tmp_path):
    from leanconv.networks import from_name
    from leanconv.train import checkpoint

    network = from_name("test_vit", num_classes=3)
    path = tmp_path / "vit.safetensors"
    checkpoint.save(path, network.model, name="test_vit", model_args={"num_classes": 3})
    out = tmp_path / "out"
    out.mkdir()
    text = error("compile", path, "-o", out / "vit.lconv")
    assert "layer_norm" in text or "attention" in text or "permute" in text or "transpose" in text or "expand" in text
    assert files_in(out) == []


@pytest.mark.parametrize(
    ("command", "missing", "expected"),
    [
        (["train", "digits/bireal_digits"], ["torch"], 'pip install "leanconv[train]"'),
        (["compile", "x", "-o", "y.lconv"], ["torch"], 'pip install "leanconv[train]"'),
        (["eval", "x", "--data", "digits"], ["torch"], 'pip install "leanconv[train]"'),
        (["info", "bireal_resnet18"], ["torch"], 'pip install "leanconv[train]"'),
        (["bench", "bireal_resnet18"], ["torch"], 'pip install "leanconv[train]"'),
        (["demo"], ["torch", "sklearn"], 'pip install "leanconv[demo]"'),
        (["export", "x", "-o", "y.onnx"], ["onnxscript"], 'pip install "leanconv[train,export]"'),
        (["bench", "x", "--rivals", "openvino"], ["openvino"], 'pip install "leanconv[train,export,bench]"'),
    ],
)
def test_missing_extra(command, missing, expected, tmp_path):
    code = (
        f"import sys; sys.argv[1:] = {command!r}\n"
        f"for name in {missing!r}: sys.modules[name] = None\n"
        "from leanconv.cli import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert expected in lines[0] and missing[0] in lines[0]
    assert files_in(tmp_path) == []


def test_debug_shows_the_traceback(leanconv, tmp_path):
    result = leanconv("--debug", "info", tmp_path / "absent.lconv", code=1)
    assert "Traceback" in result.stderr
    assert "Traceback" in leanconv("info", tmp_path / "absent.lconv", code=1, LEANCONV_DEBUG="1").stderr


def test_a_closed_pipe_is_no_error(packed, pictures):
    program = Path(sys.executable).parent / "leanconv"
    names = [str(pictures)] * 200
    with subprocess.Popen(
        [str(program), "run", str(packed), *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_errors_of_our_own_mistakes_keep_their_traceback():
    from leanconv.cli.errors import explain

    assert explain(RuntimeError("a bug")) is None
    assert explain(ImportError("no torch", name="torch")) == 'this needs torch: pip install "leanconv[train]"'
    assert explain(ImportError("odd", name="odd")) is None
    try:
        json.loads("{")
    except ValueError as mistake:
        assert explain(mistake) is None
    try:
        os.stat("/absent/file")
    except OSError as mistake:
        assert explain(mistake) == "/absent/file: No such file or directory"
