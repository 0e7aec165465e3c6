"""docs/sofar.md: its Python runs, and its pictures are there."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "sofar.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})


def test_pictures_are_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", PAGE.read_text())
    assert pictures and all((PAGE.parent / picture).is_file() for picture in pictures)
