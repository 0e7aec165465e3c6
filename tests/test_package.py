"""The wheel in an environment of its own: no torch, no compiler, and still it runs a packed file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from leanconv.pictures import smooth_pictures

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    wheel = next(built.glob("*.whl"))
    command = [folder / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "-q", wheel]
    done = subprocess.run([*command, "-c", ROOT / "constraints.txt"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "bin"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed network and a picture."""
    from PIL import Image

    from leanconv.networks import from_name, settle

    folder = tmp_path_factory.mktemp("files")
    network = from_name("bireal_digits")
    settle(network.model, network.example(count=16).numpy())
    network.compile()[0].save(folder / "digits.lconv")
    Image.fromarray(smooth_pictures(1, 20, 20, 1)[0, :, :, 0]).save(folder / "picture.png")
    return folder


def call(installed: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`leanconv` of the fresh environment; neither a compiler nor this environment is on its path."""
    environment = {"PATH": str(installed), "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [installed / "leanconv", *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=installed
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_archives_hold_what_they_should(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert any(name.startswith("leanconv/_core.") for name in names)
    assert {
        "leanconv/py.typed",
        "leanconv/recipes/digits/bireal_digits.yaml",
        "leanconv/weights/bireal_digits.lconv",
    } <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "native", "results"))]
    required = [
        line.partition(":")[2].strip()
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert sorted(text.partition(">")[0] for text in required) == ["numpy", "pillow", "rich", "safetensors", "typer"]
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"CMakeLists.txt", "native/bindings.cpp", "pyproject.toml", "LICENSE", "constraints.txt"} <= inside
    assert not [name for name in inside if name.startswith((".venv", "build", "dist", "results"))]


def test_no_torch_and_no_compiler(installed):
    code = "import importlib.util as u, shutil; print([u.find_spec(m) for m in ('torch', 'timm', 'onnx')]"
    code += ", [shutil.which(c) for c in ('cc', 'c++', 'g++', 'clang++')])"
    environment = {"PATH": str(installed)}
    text = subprocess.check_output([installed / "python", "-c", code], text=True, env=environment)
    assert text.strip() == "[None, None, None] [None, None, None, None]"


def test_run(installed, files):
    rows = json.loads(call(installed, "run", files / "digits.lconv", files / "picture.png", "--json").stdout)
    assert len(rows) == 1 and len(rows[0]["top"]) == 5
    from leanconv import engine
    from leanconv.preprocess import Preprocessing, read_pictures

    model = engine.load(files / "digits.lconv")
    rules = Preprocessing.from_dict(model.program_info["preprocessing"])
    logits = model(read_pictures([files / "picture.png"], rules))[0]
    assert rows[0]["top"][0]["index"] == int(logits.argmax())


def test_info(installed, files):
    counts = json.loads(call(installed, "info", files / "digits.lconv", "--json").stdout)
    assert counts["bytes_packed"] == (files / "digits.lconv").stat().st_size and counts["parameters_binary"] > 0
    assert "binary_conv" in call(installed, "info", files / "digits.lconv").stdout


def test_bench(installed, files):
    result = json.loads(call(installed, "bench", files / "digits.lconv", "--rounds", 2, "--json", "-").stdout)
    assert result["engine_ms"] > 0 and result["rivals_ms"] == {}
    assert "conv1" in call(installed, "bench", files / "digits.lconv", "--rounds", 1, "--profile").stdout


def test_list_shows_the_shipped_recipes(installed):
    text = call(installed, "list").stdout
    assert "digits/bireal_digits" in text and 'pip install "leanconv[train]"' in text


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "digits/bireal_digits"], "train"),
        (["eval", "x.lconv", "--data", "digits"], "train"),
        (["compile", "x.safetensors", "-o", "x.lconv"], "train"),
        (["info", "bireal_resnet18"], "train"),
        (["bench", "bireal_resnet18"], "train"),
        (["export", "bireal_resnet18", "-o", "x.onnx"], "train,export"),
        (["demo"], "demo"),
    ],
)
def test_what_needs_more_says_so(installed, arguments, extra):
    done = call(installed, *arguments, code=1)
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert f'pip install "leanconv[{extra}]"' in done.stderr


def test_rivals_that_are_missing_say_so(installed, files):
    done = call(installed, "bench", files / "digits.lconv", "--rivals", "onnxruntime", code=1)
    assert 'pip install "leanconv[train,export,bench]"' in done.stderr


def test_compile_from_python_says_what_it_needs(installed):
    code = "import leanconv\ntry:\n    leanconv.compile\nexcept ImportError as e:\n    print(e)"
    text = subprocess.check_output([installed / "python", "-c", code], text=True, cwd=installed)
    assert 'pip install "leanconv[train]"' in text
