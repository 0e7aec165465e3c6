"""The learning rate over a run, as a factor of each group's base rate: timm's schedules behind a linear warm-up."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leanconv import models  # noqa: F401  (prepares torchvision for timm)
from leanconv.train.recipe import Recipe, RecipeError

from timm.scheduler import (  # isort: skip
    CosineLRScheduler,
    MultiStepLRScheduler,
    PolyLRScheduler,
    StepLRScheduler,
)


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Args):
    """``factor = 1``."""


class Linear(_Args):
    """A straight line from 1 down to `min_lr`."""

    min_lr: float = Field(default=0.0, ge=0, description="the last learning rate, where the recipe's is the first")


class Cosine(_Args):
    """Half a cosine from 1 down to `min_lr` (arXiv 1608.03983), with t^k for the time t where `k_decay` is given
    (arXiv 2004.05909; both as timm computes them).
    """

    min_lr: float = Field(default=0.0, ge=0)
    k_decay: float = Field(default=1.0, gt=0)


class Poly(_Args):
    """``(1 - t^k)^power`` for the time t from 0 to 1 and k = `k_decay`, down to `min_lr`."""

    min_lr: float = Field(default=0.0, ge=0)
    power: float = Field(default=1.0, gt=0)
    k_decay: float = Field(default=1.0, gt=0)


class Step(_Args):
    """Times `decay_rate` every `decay_epochs` epochs; warm-up counts as part of them."""

    decay_epochs: float = Field(gt=0)
    decay_rate: float = Field(default=0.1, gt=0, le=1)


class MultiStep(_Args):
    """Times `decay_rate` from each epoch of `decay_milestones` on; they count from the start, warm-up included."""

    decay_milestones: list[float] = Field(min_length=1)
    decay_rate: float = Field(default=0.1, gt=0, le=1)


SCHEDULES: dict[str, type[_Args]] = {
    "cosine": Cosine,
    "linear": Linear,
    "constant": Constant,
    "step": Step,
    "multistep": MultiStep,
    "poly": Poly,
}


class Schedule:
    """The recipe's schedule over `epochs` epochs of `steps_per_epoch` steps, a pure function of the step.

    The rate first rises in a straight line over the w steps of `warmup_epochs`, from ``1 / (w + 1)`` to 1, then
    follows the schedule, which for cosine, linear and poly reaches its end as the last step is done. `min_lr` is a
    learning rate beside the recipe's `learning_rate`; groups with another base rate end in the same proportion.

    Raises: RecipeError for arguments that the schedule doesn't have.

    >>> from leanconv.train.recipe import make_recipe
    >>> made = {"model": "m", "data": "digits", "epochs": 5, "learning_rate": 0.1, "schedule": "linear"}
    >>> schedule = Schedule(make_recipe({**made, "warmup_epochs": 1}), epochs=5, steps_per_epoch=1)
    >>> [round(schedule.factor(step), 3) for step in range(6)]
    [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def __init__(self, recipe: Recipe, epochs: int, steps_per_epoch: int) -> None:
        args: Any = schedule_args(recipe)
        warmup = round(recipe.warmup_epochs * steps_per_epoch)
        # the groups' own rates aren't touched: timm moves that of a stand-in, whose base rate is 1
        self._stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        common: dict[str, Any] = {"warmup_t": warmup, "warmup_lr_init": 1 / (warmup + 1), "t_in_epochs": False}
        if recipe.schedule in ("cosine", "linear", "poly"):
            common |= {
                "t_initial": max(1, epochs * steps_per_epoch - warmup),
                "lr_min": args.min_lr / recipe.learning_rate,
                "warmup_prefix": True,
            }
        else:
            common |= {"warmup_prefix": False}
        made: Any
        match recipe.schedule:
            case "cosine":
                made = CosineLRScheduler(self._stand_in, k_decay=args.k_decay, **common)
            case "linear":
                made = PolyLRScheduler(self._stand_in, power=1.0, **common)
            case "poly":
                made = PolyLRScheduler(self._stand_in, power=args.power, k_decay=args.k_decay, **common)
            case "constant":
                made = StepLRScheduler(self._stand_in, decay_t=1, decay_rate=1.0, **common)
            case "step":
                every = max(1, round(args.decay_epochs * steps_per_epoch))
                made = StepLRScheduler(self._stand_in, decay_t=every, decay_rate=args.decay_rate, **common)
            case "multistep":
                # timm compares its milestones with t + 1
                milestones = sorted(round(m * steps_per_epoch) + 1 for m in args.decay_milestones)
                made = MultiStepLRScheduler(self._stand_in, milestones, decay_rate=args.decay_rate, **common)
        self._scheduler = made

    def factor(self, step: int) -> float:
        """What the base rates are multiplied by in a step, counted from 0."""
        self._scheduler.step_update(step)
        return float(self._stand_in.param_groups[0]["lr"])


def schedule_args(recipe: Recipe) -> _Args:
    """The recipe's `schedule_args`, checked and with defaults. Raises RecipeError."""
    kind = SCHEDULES[recipe.schedule]
    try:
        args = kind.model_validate(recipe.schedule_args)
    except ValidationError as error:
        details = error.errors()
        first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
        key, known = str(first["loc"][0]), list(kind.model_fields)
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
            raise RecipeError(f"schedule_args: unknown {key!r} for the schedule {recipe.schedule}; {hint}") from None
        if first["type"] == "missing":
            raise RecipeError(f"schedule_args: the schedule {recipe.schedule} needs {key!r}") from None
        raise RecipeError(f"schedule_args.{key}: {first['msg']}, got {first['input']!r}") from None
    if getattr(args, "min_lr", 0) > recipe.learning_rate:
        raise RecipeError(
            f"schedule_args.min_lr: {args.min_lr:g} is more than learning_rate ({recipe.learning_rate:g})"  # type: ignore[attr-defined]
        )
    return args
