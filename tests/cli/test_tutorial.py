"""docs/getting-started.md, run block by block in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TUTORIAL = Path(__file__).parents[2] / "docs" / "getting-started.md"


def blocks() -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_every_block_runs(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    found = blocks()
    assert {language for language, _ in found} == {"sh", "python"} and len(found) >= 6
    evaluations = []
    for language, text in found:
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        evaluations += re.findall(r"top-1 ([\d.]+)  top-5 ([\d.]+)", done.stdout)
    assert len(evaluations) == 2 and evaluations[0] == evaluations[1]
    assert (tmp_path / "bench.json").is_file()
