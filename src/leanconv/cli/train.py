"""`leanconv train`: a recipe in, a checkpoint out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from leanconv.extras import need


def train(recipe: str, overrides: list[str], out: Path | None, resume: bool, overwrite: bool) -> None:
    """Train or go on, and say what came out. Exit code 1 where the recipe's expected result was not reached."""
    need("`leanconv train`", "train", "torch", "timm", "yaml", "pydantic")
    from leanconv.shipped import recipe_path
    from leanconv.train.recipe import load_recipe

    path = recipe_path(recipe)
    loaded = load_recipe(path, overrides)  # before torch is imported: a typo is an error at once
    from leanconv.train.loop import train
    from leanconv.train.stop import Stopped

    try:
        result = train(loaded, out or Path("runs") / path.stem, resume=resume, overwrite=overwrite)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(130) from None
    if os.environ.get("RANK", "0") != "0":
        return  # the first process of several speaks for all
    print(f"{result.checkpoint}  top-1 {result.top1:.4f} on the {result.split} split, {result.seconds:.0f} s")
    if result.reproduced is False and loaded.expect is not None:
        print(
            f"error: top-1 {result.top1:.4f} is below the {loaded.expect.at_least:.4f} that this recipe states",
            file=sys.stderr,
        )
        raise SystemExit(1)
