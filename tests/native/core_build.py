"""Builds the core alone, without Python, and runs its test program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja may be the environment's own


def find(tool: str) -> str | None:
    return shutil.which(tool, path=PATH)


def call(*command: object) -> str:
    """What `command` prints; a failure shows the end of it."""
    texts = [*map(str, command)]
    done = subprocess.run(texts, capture_output=True, text=True, timeout=1200, env={**os.environ, "PATH": PATH})
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def build(compiler: str, folder: Path, *options: str) -> Path:
    """The test program of the core, two translation units at a time."""
    generator = ["-G", "Ninja"] if find("ninja") else []
    chosen = [f"-DCMAKE_CXX_COMPILER={compiler}", "-DLEANCONV_TESTS=ON", *options]
    call("cmake", *generator, "-S", ROOT, "-B", folder, *chosen)
    call("cmake", "--build", folder, "--parallel", 2)
    return folder / "leanconv_tests"
