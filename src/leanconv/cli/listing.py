"""`leanconv list`: what there is to train and to run."""

from __future__ import annotations

import json as jsonlib
from importlib.util import find_spec
from typing import Any

from leanconv.shipped import recipes, weights

DATA = {
    "digits": "1797 handwritten 8x8 digits, come with scikit-learn",
    "npz:PATH": "x_train y_train x_test y_test in one .npz file",
    "imagefolder:PATH": "PATH/train/<class>/*, PATH/test or PATH/val",
    "webdataset:PATH": "tar shards PATH/train-*.tar, PATH/test-*.tar or PATH/val-*.tar",
    "torchvision:NAME:ROOT": "a data set of torchvision, for instance torchvision:CIFAR10:data",
}


def listing(json: bool) -> None:
    """Print models (where torch and timm are installed), those whose trained weights ship, recipes with their stated
    results, and data SPECs.
    """
    models = _models()
    shipped = _recipes()
    packed = {name: path.stat().st_size for name, path in weights().items()}
    if json:
        print(jsonlib.dumps({"models": models, "weights": packed, "recipes": shipped, "data": DATA}, indent=1))
        return
    print("models")
    if models is None:
        print('  to list and train them: pip install "leanconv[train]"')
    for model in models or []:
        twin = f"  float twin {model['float_twin']}" if model["float_twin"] else ""
        print(f"  {model['name']:<26}{twin}".rstrip())
    print("weights that ship (take the name for a file: leanconv run NAME picture.png)")
    for name, size in packed.items():
        print(f"  {name:<26}  {size:,} bytes")
    print("recipes")
    for name, recipe in shipped.items():
        print(f"  {name:<38}  {_result(recipe)}".rstrip())
    print("data")
    for spec, text in DATA.items():
        print(f"  {spec:<26}  {text}")


def _models() -> list[dict[str, Any]] | None:
    if find_spec("torch") is None or find_spec("timm") is None:
        return None
    from leanconv.models import float_twin, list_models

    binary = set(list_models(binary=True))
    return [{"name": name, "float_twin": float_twin(name) if name in binary else None} for name in list_models()]


def _result(recipe: dict[str, Any]) -> str:
    """What a recipe states: our measurement, or else that of its source."""
    expected, published = recipe.get("expect") or {}, recipe.get("published") or {}
    if "top1" in expected:
        return f"top-1 {expected['top1']:.4f}"
    if not published:
        return ""
    figure = (
        f"top-1 {published['top1']:.4f}" if "top1" in published else "gain {gain:+.2f} over {over}".format(**published)
    )
    return f"published {figure}, {published.get('status', 'not yet measured')}"


def _recipes() -> dict[str, dict[str, Any]]:
    """Name -> entries of every shipped recipe; entries are empty where no YAML reader is installed."""
    if find_spec("yaml") is None:
        return {name: {} for name in recipes()}
    import yaml

    return {name: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for name, path in recipes().items()}
