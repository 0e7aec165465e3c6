"""`leanconv list`: what there is to train and to run."""

from __future__ import annotations

import json as jsonlib
from importlib.util import find_spec
from typing import Any

from leanconv.shipped import recipes

DATA = {
    "digits": "1797 handwritten 8x8 digits, come with scikit-learn",
    "npz:PATH": "x_train y_train x_test y_test in one .npz file",
    "imagefolder:PATH": "PATH/train/<class>/*, PATH/test or PATH/val",
    "torchvision:NAME:ROOT": "a data set of torchvision, for instance torchvision:CIFAR10:data",
}


def listing(json: bool) -> None:
    """Print models (where torch and timm are installed), recipes with their stated results, and data SPECs."""
    models = _models()
    shipped = _recipes()
    if json:
        print(jsonlib.dumps({"models": models, "recipes": shipped, "data": DATA}, indent=1))
        return
    print("models")
    if models is None:
        print('  to list and train them: pip install "leanconv[train]"')
    for model in models or []:
        twin = f"  float twin {model['float_twin']}" if model["float_twin"] else ""
        print(f"  {model['name']:<24}{twin}".rstrip())
    print("recipes")
    for name, recipe in shipped.items():
        stated = recipe.get("expect") or {}
        result = f"  top-1 {stated['top1']:.4f}" if "top1" in stated else ""
        print(f"  {name:<30}{result}".rstrip())
    print("data")
    for spec, text in DATA.items():
        print(f"  {spec:<24}{text}")


def _models() -> list[dict[str, Any]] | None:
    if find_spec("torch") is None or find_spec("timm") is None:
        return None
    from leanconv.models import float_twin, list_models

    binary = set(list_models(binary=True))
    return [{"name": name, "float_twin": float_twin(name) if name in binary else None} for name in list_models()]


def _recipes() -> dict[str, dict[str, Any]]:
    """Name -> entries of every shipped recipe; entries are empty where no YAML reader is installed."""
    if find_spec("yaml") is None:
        return {name: {} for name in recipes()}
    import yaml

    return {name: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for name, path in recipes().items()}
