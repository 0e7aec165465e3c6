"""Recipes: everything that decides a training run, as one YAML file, checked before anything starts. Needs no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class RecipeError(ValueError):
    """A recipe that cannot be followed; one line that says which entry, what was given and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Augment(_Section):
    """Random changes of the training pictures, drawn anew for each picture and epoch."""

    shift: float = Field(default=0.0, ge=0, description="largest move in pixels; beyond the border is black")
    rotate: float = Field(default=0.0, ge=0, le=180, description="largest turn in degrees")
    scale: float = Field(default=0.0, ge=0, lt=1, description="largest relative change of size: 0.1 is 0.9 to 1.1")
    flip: bool = Field(default=False, description="mirror left and right, half of the time")


class Expect(_Section):
    """The measured result of this recipe; a run below `at_least` is reported as a failure to reproduce."""

    top1: float = Field(ge=0, le=1, description="mean over the seeds, on the test split")
    deviation: float | None = Field(default=None, ge=0, description="standard deviation over the seeds")
    seeds: list[int] = Field(default_factory=list)
    at_least: float = Field(ge=0, le=1)


class Recipe(_Section):
    """One training run. Unknown keys are refused."""

    model: str = Field(description="a name that timm.create_model knows, ours included")
    model_args: dict[str, Any] = Field(default_factory=dict)
    data: str = Field(description="digits | npz:PATH | imagefolder:PATH | torchvision:NAME:ROOT")
    validation: float = Field(
        0.0, ge=0, lt=1, description="part of the training set to hold out and evaluate on; 0: the test set"
    )
    seed: int = Field(default=0, ge=0)
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=1)
    optimizer: str = Field(default="adam", description="a name that timm.optim knows")
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(
        0.0, ge=0, description="on real-valued weights only: never on binary weights, biases, batch norms"
    )
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    augment: Augment = Augment()
    expect: Expect | None = None

    def to_yaml(self) -> str:
        """The recipe with all of its defaults, as YAML that :func:`load_recipe` reads back."""
        return yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["epochs=2", "augment.shift=1"]`` -> ``{"epochs": 2, "augment.shift": 1}``; values are YAML. Raises
    RecipeError.

    >>> parse_overrides(["epochs=2", "augment.flip=true"])
    {'epochs': 2, 'augment.flip': True}
    """
    parsed = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {text}: expected key=value, for instance epochs=20 or augment.shift=1")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {text}: the value is not valid YAML") from None
    return parsed


def make_recipe(entries: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check `entries` and fill in defaults. Raises RecipeError whose text starts with `where`.

    >>> make_recipe({"model": "bireal_digits", "data": "digits", "epochs": 2, "learning_rate": 0.01}).batch_size
    64
    """
    try:
        return Recipe.model_validate(entries)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key=value`` overrides (dots reach into sections). Raises RecipeError.

    The expected result is dropped where an override makes it another experiment (anything but seed and expect).
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `leanconv list` names those that come along") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{path}: not valid YAML{line} ({getattr(error, 'problem', None) or 'syntax'})") from None
    if not isinstance(entries, dict):
        raise RecipeError(f"{path}: a recipe is a list of `key: value` entries, this is {type(entries).__name__}")
    make_recipe(entries, str(path))
    for key, value in parse_overrides(overrides).items():
        *sections, last = key.split(".")
        target = entries
        for name in sections:
            inner = target.get(name)
            target[name] = target = dict(inner) if isinstance(inner, dict) else {}
        target[last] = value
        make_recipe(entries, f"--set {key}={value}")
        if sections[:1] != ["expect"] and key not in ("seed", "expect"):
            entries.pop("expect", None)
    return make_recipe(entries, str(path))


def _explain(error: ValidationError) -> str:
    details = error.errors()
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section = _section_at(first["loc"][:-1])
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"unknown key {location!r}; {hint}"
    if first["type"] == "missing":
        return f"{location!r} is missing"
    return f"{location}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r}"


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    sections: dict[str, type[BaseModel]] = {"augment": Augment, "expect": Expect}
    return sections.get(str(location[0]), Recipe) if location else Recipe
