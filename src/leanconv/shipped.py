"""Recipes and trained networks that come with the package.

Recipes are in its folder when installed from a wheel, in the repository when developing.
"""

from __future__ import annotations

from pathlib import Path


def recipes() -> dict[str, Path]:
    """Every shipped recipe by its name, for instance ``digits/bireal_digits``."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if folder.is_dir():
            return {
                path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.glob("*/*.yaml"))
            }
    return {}


def recipe_path(text: str) -> Path:
    """The file `text` names: a path, or else a shipped recipe's name.

    >>> recipe_path("digits/bireal_digits").name
    'bireal_digits.yaml'
    """
    path = Path(text)
    if path.exists():
        return path
    return recipes().get(text.removeprefix("recipes/").removesuffix(".yaml"), path)


WEIGHTS = Path(__file__).parent / "weights"


def weights() -> dict[str, Path]:
    """The packed file of every network whose trained weights ship, by the model's name. Reads none of them."""
    return {path.stem: path for path in sorted(WEIGHTS.glob("*.lconv"))}


def packed_path(text: str | Path) -> Path:
    """The packed file that `text` names: a path, or else a network whose trained weights ship.

    >>> packed_path("bireal_digits").name
    'bireal_digits.lconv'
    """
    path = Path(text)
    return path if path.exists() else weights().get(str(text), path)
