"""What a run starts from: data, network, preprocessing, first weights."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from torch import nn

from leanconv import models  # noqa: F401  (registers our networks and prepares torchvision for timm)
from leanconv.preprocess import PictureError, Preprocessing
from leanconv.train import checkpoint
from leanconv.train.data import Data, DataError, load_data
from leanconv.train.recipe import Recipe, RecipeError

import timm  # isort: skip


def read_data(recipe: Recipe) -> tuple[Data, Preprocessing]:
    """The data of a recipe and how a picture of it enters the network. Raises RecipeError, DataError."""
    rules = preprocessing_of(recipe.model, recipe.model_args)
    if recipe.size is not None:
        rules = dataclasses.replace(rules, input_size=(rules.input_size[0], recipe.size, recipe.size))
    data = load_data(recipe.data, rules, augment=recipe.augment, workers=recipe.workers)
    if data.train is None:
        raise DataError(f"data {recipe.data!r} has no training pictures")
    if data.prepared:
        return data, rules
    height, width, channels = data.train.picture_shape
    if recipe.size is not None and (height, width) != (recipe.size, recipe.size):
        raise RecipeError(
            f"size: the pictures of {recipe.data} are {height}x{width} and are not resized; leave size out, "
            "or give the pictures as imagefolder:PATH"
        )
    mean, std = rules.mean, rules.std
    if len(mean) != channels:  # a grey or RGBA data set in a network made for colour
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return data, Preprocessing((channels, height, width), mean, std, rules.interpolation, 1.0, rules.crop_mode)


def preprocessing_of(name: str, model_args: dict[str, Any] | None = None) -> Preprocessing:
    """How pictures are prepared for the network `name`: timm's pretrained_cfg, with the entries that
    ``model_args["pretrained_cfg_overlay"]`` puts over it, as in ``timm.create_model``. Raises RecipeError.

    >>> preprocessing_of("resnet50").crop_pct
    0.95
    >>> preprocessing_of("resnet50", {"pretrained_cfg_overlay": {"crop_pct": 0.875}}).crop_pct
    0.875
    """
    check_name(name)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        raise RecipeError(f"model: {name!r} does not say how its pictures are prepared")
    key = "model_args.pretrained_cfg_overlay"
    overlay = (model_args or {}).get("pretrained_cfg_overlay") or {}
    if not isinstance(overlay, dict):
        raise RecipeError(f"{key}: expected entries such as {{crop_pct: 0.875}}, got {overlay!r}")
    known = {field.name for field in dataclasses.fields(cfg)}
    for entry in overlay:
        if entry not in known:
            near = difflib.get_close_matches(str(entry), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"{key}: timm's configurations have no entry {entry!r}{hint}")
    try:
        return Preprocessing.from_dict(dataclasses.replace(cfg, **overlay).to_dict())
    except PictureError as error:
        raise RecipeError(f"{key}: {error}" if overlay else f"model: {name!r}: {error}") from None


def check_name(name: str) -> None:
    """Raises RecipeError where timm knows no network of that name."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`leanconv list` names ours, timm.list_models() all"
        raise RecipeError(f"model: unknown network {name!r}; {hint}")


def create_model(recipe: Recipe, model_args: dict[str, Any]) -> nn.Module:
    """The network of a recipe with its first weights: shipped ones (`pretrained`), those of a checkpoint
    (`start_from`), or timm's initialisation; then with its layers replaced (`convert`). Raises RecipeError.
    """
    check_name(recipe.model)
    try:
        model = timm.create_model(recipe.model, pretrained=recipe.pretrained, **model_args)
    except (TypeError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "pretrained" if recipe.pretrained and "pretrained" in line else "model_args"
        raise RecipeError(f"{what}: {recipe.model} cannot be made with {model_args} ({line})") from None
    if recipe.start_from is not None:
        checkpoint.load_fitting(recipe.start_from, model)
    if recipe.convert is not None:
        model = convert_layers(model, recipe.convert.model_dump())
    return model


def convert_layers(model: nn.Module, how: dict[str, Any]) -> nn.Module:
    """:func:`leanconv.nn.convert` with the entries of a recipe's or a checkpoint's `convert`. Raises RecipeError."""
    from leanconv import nn as layers

    layer = getattr(layers, how["to"], None)
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        names = [n for n in dir(layers) if isinstance(getattr(layers, n), type)]
        near = difflib.get_close_matches(how["to"], names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"convert.to: leanconv.nn has no layer {how['to']!r}{hint}")
    try:
        return layers.convert(model, layer, skip=how["skip"], only=how["only"], **how["args"])
    except (TypeError, ValueError) as error:
        raise RecipeError(f"convert: {error}") from None
