"""Pages of docs/: their Python runs, and their pictures are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "count"), [("sofar.md", 2), ("drop-in.md", 3)])
def test_python_blocks_run(page, count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert len(blocks) == count
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(DOCS / page), "exec"), names)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_pictures_are_there(page):
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (DOCS / page).read_text())
    assert all((DOCS / picture).is_file() for picture in pictures)


def test_costs_of_drop_in_convolutions_are_those_measured():
    page = (DOCS / "drop-in.md").read_text()
    rows = json.loads((DOCS.parent / "results" / "drop_in.json").read_text())["rows"]
    for network in {row["network"] for row in rows if row["network"] != "resnet50"}:
        name, _, impl = network.partition(", ")
        cells = [f"{row['ratio']:.2f}x" for row in rows if row["network"] == network]
        label = f'`{name}`, `impl="{impl}"`' if impl else f"`{name}`"
        assert f"| {label} | {' | '.join(cells)} |" in page
