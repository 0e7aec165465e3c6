"""The core builds with gcc and with clang, and its own test program passes with both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_core_builds_and_passes(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed (sudo apt-get install {compiler.replace('++', '')})")
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def call(*command: object) -> None:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=os.environ | tools)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    options = ("-DLEANCONV_TESTS=ON", "-DLEANCONV_WERROR=ON", "-DCMAKE_BUILD_TYPE=Release")
    call("cmake", "-S", ROOT, "-B", tmp_path, f"-DCMAKE_CXX_COMPILER={compiler}", *options)
    call("cmake", "--build", tmp_path, "--parallel", "2")
    call(tmp_path / "leanconv_tests")
