"""Imports point one way, and what runs a packed file never imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import leanconv

PACKAGE = Path(leanconv.__file__).parent
HEAVY = ("torch", "timm", "torchvision", "sklearn", "onnx", "onnxruntime", "openvino", "matplotlib", "pydantic")


@pytest.mark.parametrize(
    "module",
    [
        "leanconv",
        "leanconv.program",
        "leanconv.engine",
        "leanconv.engine.reference",
        "leanconv.complexity",
        "leanconv.preprocess",
        "leanconv.pictures",
        "leanconv.report",
        "leanconv.cli",
        "leanconv.cli.run",
        "leanconv.cli.info",
        "leanconv.cli.bench",
        "leanconv.cli.listing",
        "leanconv.bench",
        "leanconv.bench.worker",
    ],
)
def test_light_modules(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_running_a_packed_file_imports_no_torch(tmp_path):
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from leanconv.cli import main; code = main()\n"
        f"assert code == 0 and not [m for m in {HEAVY!r} + ('numpy', 'PIL') if m in sys.modules], sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# What a part may import of the others (besides itself).
MAY = {
    "program": set(),
    "pictures": set(),
    "extras": set(),
    "shipped": set(),
    "preprocess": set(),
    "engine": {"program", "preprocess"},
    "complexity": {"program"},
    "nn": set(),
    "models": {"nn", "program", "shipped", "_torchvision"},
    "compiler": {"program", "engine", "nn", "preprocess"},
    "onnx_export": {"nn", "program", "compiler"},
    "train": {"program", "preprocess", "nn", "models", "extras", "shipped", "_torchvision"},
}


@pytest.mark.parametrize("part", MAY)
def test_import_direction(part):
    path = PACKAGE / part
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert files and all(file.is_file() for file in files)
    for file in files:
        for name in imported(file):
            top = name.removeprefix("leanconv.").partition(".")[0]
            assert name == "leanconv" or top in MAY[part] | {part, "_core"}, f"{file} imports {name}"


def imported(file: Path) -> list[str]:
    """Every leanconv module that a file imports."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "leanconv":
                names += [f"leanconv.{alias.name}" for alias in node.names if alias.name not in ("__version__",)]
            else:
                names.append(node.module)
    return [name for name in names if name.partition(".")[0] == "leanconv"]
