"""Recipes: everything that decides a training run, as one YAML file, checked before anything starts. Needs no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class RecipeError(ValueError):
    """A recipe that cannot be followed; one line that says which entry, what was given and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Augment(_Section):
    """Random changes of the training pictures, drawn anew for each picture and epoch.

    `shift`, `rotate`, `scale`, `flip`, `erase` and `crop` change whole batches on the device where the data is in
    memory; `color_jitter` and `auto_augment`, timm's transforms of single pictures, need data that is read picture by
    picture. `mixup` and `cutmix` mix pictures and their labels (timm's).
    """

    shift: float = Field(default=0.0, ge=0, description="largest move in pixels; beyond the border is black")
    rotate: float = Field(default=0.0, ge=0, le=180, description="largest turn in degrees")
    scale: float = Field(default=0.0, ge=0, lt=1, description="largest relative change of size: 0.1 is 0.9 to 1.1")
    flip: bool = Field(default=False, description="mirror left and right, half of the time")
    erase: float = Field(default=0.0, ge=0, le=1, description="how often a random rectangle is blackened")
    crop: tuple[float, float] | None = Field(
        default=None, description="random resized crop: smallest and largest share of the picture's area"
    )
    color_jitter: float = Field(default=0.0, ge=0, description="strength of brightness, contrast, saturation changes")
    auto_augment: str | None = Field(default=None, description="timm's name of a policy, as rand-m7-mstd0.5")
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup; 0: none")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of cutmix; 0: none")

    @field_validator("crop")
    @classmethod
    def _ordered(cls, crop: tuple[float, float] | None) -> tuple[float, float] | None:
        if crop is not None and not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError("needs 0 < smallest <= largest <= 1")
        return crop


class BinaryWeights(_Section):
    """How the latent weights of binary layers are trained where it differs from the real-valued weights."""

    optimizer: str | None = Field(default=None, description="timm's name, or bop; none: the recipe's optimizer")
    optimizer_args: dict[str, Any] = Field(default_factory=dict)
    learning_rate: float | None = Field(default=None, gt=0, description="none: the recipe's")
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=None, gt=0, description="after each step, keep them within -clip..clip")


class Teacher(_Section):
    """Knowledge distillation (Hinton et al., arXiv 1503.02531): the loss becomes
    ``(1 - weight) * loss + weight * T^2 * KL(softmax(teacher / T) || softmax(network / T))``.
    """

    model: str | None = Field(default=None, description="a name for timm.create_model; none: what the checkpoint says")
    model_args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = Field(default=None, description="one that leanconv wrote; none: its shipped weights")
    weight: float = Field(default=0.5, gt=0, le=1)
    temperature: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _named(self) -> Teacher:
        if self.model is None and self.checkpoint is None:
            raise ValueError("needs model or checkpoint")
        return self


class RealWeightsFirst(_Section):
    """The first of two steps: binary activations, real weights. Its weights start the second step, in which the
    weights are binary too, with a fresh optimizer and schedule (two-step training: Martinez et al., arXiv 2003.11535;
    Liu et al., arXiv 2003.03488; cited from memory).
    """

    epochs: int = Field(ge=1)
    learning_rate: float | None = Field(default=None, gt=0, description="none: the recipe's")
    weight_decay: float | None = Field(default=None, ge=0, description="of all weights; none: the recipe's")


class Convert(_Section):
    """Replaces layers of the network by :func:`leanconv.nn.convert`, whose arguments these are."""

    to: str = Field(description="a layer of leanconv.nn, as BinaryConv2d")
    skip: list[str] = Field(default_factory=lambda: ["first", "last"])
    only: list[str] = Field(default_factory=list, description="name patterns; none: every layer that fits")
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of the new layers")


class Expect(_Section):
    """The measured result of this recipe; a run below `at_least` is reported as a failure to reproduce."""

    top1: float = Field(ge=0, le=1, description="mean over the seeds, on the test split")
    deviation: float | None = Field(default=None, ge=0, description="standard deviation over the seeds")
    seeds: list[int] = Field(default_factory=list)
    at_least: float = Field(ge=0, le=1, description="the lowest top-1 that counts as reproduced")


class Published(_Section):
    """What the source reports for this network and schedule, as `top1` or as a `gain` `over` another network; not our
    measurement."""

    top1: float | None = Field(default=None, ge=0, le=1)
    gain: float | None = Field(default=None, description="in points of top-1, where the source states that alone")
    over: str | None = Field(default=None, description="the recipe of the network that the gain is measured against")
    source: str
    status: Literal["not yet measured", "measured"] = "not yet measured"

    @model_validator(mode="after")
    def _one_figure(self) -> Published:
        if (self.top1 is None) == (self.gain is None) or (self.gain is None) != (self.over is None):
            raise ValueError("needs either top1, or gain and over")
        return self

    def __str__(self) -> str:
        """``60.9`` or ``+3.29 over imagenet/bireal_resnet18``."""
        return f"{100 * self.top1:.1f}" if self.top1 is not None else f"{self.gain:+.2f} over {self.over}"


class Recipe(_Section):
    """One training run. Unknown keys are refused."""

    model: str = Field(description="a name that timm.create_model knows, ours included")
    model_args: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the network, over those that the data decides; timm's pretrained_cfg_overlay also "
        "decides how pictures are prepared",
    )
    pretrained: bool = Field(default=False, description="start from the weights that ship with the model")
    start_from: str | None = Field(default=None, description="start from the tensors of a checkpoint that fit by name")
    convert: Convert | None = None
    data: str = Field(description="digits | npz:PATH | imagefolder:PATH | webdataset:PATH | torchvision:NAME:ROOT")
    size: int | None = Field(
        default=None, ge=1, description="height and width of pictures read from files; none: the model's own"
    )
    validation: float = Field(
        0.0, ge=0, lt=1, description="part of the training set to hold out and evaluate on; 0: the test set"
    )
    seed: int = Field(default=0, ge=0, description="decides every random draw")
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=1, description="pictures a step, over all processes")
    accumulate: int = Field(default=1, ge=1, description="parts in which each process computes its share of a step")
    optimizer: str = Field(default="adam", description="a name that timm.optim knows")
    optimizer_args: dict[str, Any] = Field(default_factory=dict, description="further arguments of the optimizer")
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(
        0.0, ge=0, description="on real-valued weights only: never on binary weights, biases, batch norms"
    )
    binary_weights: BinaryWeights = BinaryWeights()
    clip_gradient: float | None = Field(default=None, gt=0, description="largest norm of the whole gradient")
    schedule: Literal["cosine", "linear", "constant", "step", "multistep", "poly"] = Field(
        default="cosine", description="of the learning rate; see schedule_args"
    )
    schedule_args: dict[str, Any] = Field(
        default_factory=dict,
        description="of timm's scheduler: min_lr, k_decay, power, decay_epochs, decay_milestones, decay_rate",
    )
    warmup_epochs: float = Field(default=0.0, ge=0, description="a straight rise of the learning rate at first")
    real_weights_first: RealWeightsFirst | None = None
    teacher: Teacher | None = None
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target that is spread over all classes"
    )
    augment: Augment = Augment()
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of an average of the weights, which is then what is evaluated"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of the forward pass; weights stay in fp32"
    )
    channels_last: bool = Field(default=False, description="memory layout, often faster")
    compile: bool = Field(default=False, description="torch.compile: faster steps, half a minute to start")
    workers: int = Field(default=4, ge=0, description="processes that read pictures; data in memory needs none")
    log_steps: int = Field(default=50, ge=1, description="steps between two lines of the log")
    save_minutes: float = Field(default=10.0, gt=0, description="time between two saved states within an epoch")
    expect: Expect | None = None
    published: Published | None = None

    def to_yaml(self) -> str:
        """The recipe with all of its defaults, as YAML that :func:`load_recipe` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


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
    """The section that a location such as ("augment",) names."""
    section: type[BaseModel] = Recipe
    for part in location:
        kind = section.model_fields[str(part)].annotation
        found = [k for k in (kind, *getattr(kind, "__args__", ())) if isinstance(k, type) and issubclass(k, BaseModel)]
        if not found:
            break
        section = found[0]
    return section
