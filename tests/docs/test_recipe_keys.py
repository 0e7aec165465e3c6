"""docs/recipe_keys.py: docs/training.md lists every entry of a recipe as it is checked."""

from __future__ import annotations

import pytest

from docs import recipe_keys
from leanconv.train.recipe import Augment, Recipe


def test_the_page_is_up_to_date():
    page = recipe_keys.PAGE.read_text(encoding="utf-8")
    assert recipe_keys.filled(page) == page, "python docs/recipe_keys.py"


def test_every_entry_has_a_row():
    text = recipe_keys.tables()
    for key in (*Recipe.model_fields, *Augment.model_fields, "decay_milestones"):
        assert f"`{key}`" in text
    rows = text.splitlines()
    assert "| `validation` | number ≥ 0, < 1 | `0` |" in next(row for row in rows if row.startswith("| `validation`"))
    assert "| `epochs` | whole number ≥ 1 | needed |" in next(row for row in rows if row.startswith("| `epochs`"))
    assert "| `fp32`, `bf16`, `fp16` | `fp32` |" in next(row for row in rows if row.startswith("| `precision`"))
    assert all(row.count("|") - row.count("\\|") in (4, 5) for row in rows if row.startswith("|"))


def test_a_page_without_the_block():
    with pytest.raises(SystemExit, match="lacks the markers"):
        recipe_keys.filled("nothing")
