"""The real command line in a process of its own, and small files to give it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def leanconv() -> Run:
    """Calls `leanconv ARGUMENTS...`; checks the exit code against `code`."""
    program = Path(sys.executable).parent / "leanconv"
    assert program.exists(), "leanconv is not installed in this environment"

    def call(*arguments: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [str(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            timeout=300,
        )
        assert result.returncode == code, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    return call


@pytest.fixture(scope="session")
def error(leanconv: Run) -> Callable[..., str]:
    """Calls a command that must fail: exit code 1, nothing on stdout, one line on stderr, which is returned."""

    def call(*arguments: object, **environment: str) -> str:
        result = leanconv(*arguments, code=1, **environment)
        lines = result.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
        assert result.stdout == ""
        return lines[0]

    return call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained bireal_digits whose batch norms are measured, so that its activations are usual ones."""
    from leanconv.networks import from_name, settle
    from leanconv.train import checkpoint

    network = from_name("bireal_digits", num_classes=10, in_chans=1)
    settle(network.model, network.example(count=16).numpy())
    path = tmp_path_factory.mktemp("checkpoint") / "digits.safetensors"
    checkpoint.save(
        path,
        network.model,
        name="bireal_digits",
        model_args=network.arguments,
        preprocessing={
            "input_size": list(network.rules.input_size),
            "mean": list(network.rules.mean),
            "std": list(network.rules.std),
            "interpolation": network.rules.interpolation,
            "crop_pct": network.rules.crop_pct,
        },
        classes=[f"digit {i}" for i in range(10)],
    )
    return path


@pytest.fixture(scope="session")
def packed(checkpoint: Path, leanconv: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That network, packed by `leanconv compile`."""
    path = tmp_path_factory.mktemp("packed") / "digits.lconv"
    leanconv("compile", checkpoint, "-o", path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three pictures, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    (folder / "below").mkdir()
    for name in ("a.png", "b.jpg", "below/c.png"):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
    return folder
