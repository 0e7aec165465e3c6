"""Optimizers of a recipe: timm's by name, or Bop; binary and real-valued weights in groups of their own."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from leanconv import models  # noqa: F401  (prepares torchvision for timm)
from leanconv.train.bop import Bop
from leanconv.train.recipe import Recipe, RecipeError

import timm.optim  # isort: skip

Group = dict[str, Any]


def create_optimizers(
    model: nn.Module,
    recipe: Recipe,
    *,
    real_weights: bool = False,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a recipe, one or two: latent weights have their own where `binary_weights` says so.

    Weight decay falls on real-valued weights of two and more dimensions only: not on latent weights (they have their
    own, 0 unless the recipe says otherwise), biases, batch norms, nor what the network's ``no_weight_decay()`` names.
    Each group keeps its base rate as ``initial_lr``. Parameters that need no gradient are left out. With Bop, latent
    weights beyond the `clip` of their binariser, which would get no gradient, are brought to it.

    Args:
        real_weights: the first of two steps, in which latent weights are ordinary weights (decay included).
        learning_rate, weight_decay: instead of the recipe's.
    Raises: RecipeError.

    >>> from leanconv.train.recipe import make_recipe
    >>> from leanconv.nn import BinaryLinear
    >>> recipe = make_recipe({"model": "m", "data": "digits", "epochs": 1, "learning_rate": 0.1, "weight_decay": 0.01})
    >>> (optimizer,) = create_optimizers(nn.Sequential(nn.Linear(3, 4), BinaryLinear(4, 2)), recipe)
    >>> [(len(g["params"]), g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    [(1, 0.1, 0.01), (1, 0.1, 0.0), (1, 0.1, 0.0)]
    """
    rate = recipe.learning_rate if learning_rate is None else learning_rate
    decay = recipe.weight_decay if weight_decay is None else weight_decay
    latent = {} if real_weights else binary_parameters(model)
    latent_ids = {id(parameter) for parameter in latent.values()}
    no_weight_decay: Any = getattr(model, "no_weight_decay", set)
    spared = no_weight_decay()
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in latent_ids:
            (decayed if parameter.dim() > 1 and name not in spared else plain).append(parameter)
    groups = [
        {"params": decayed, "lr": rate, "weight_decay": decay},
        {"params": plain, "lr": rate, "weight_decay": 0.0},
    ]
    special = recipe.binary_weights
    binary: Group = {
        "params": [parameter for parameter in latent.values() if parameter.requires_grad],
        "lr": rate if special.learning_rate is None else special.learning_rate,
        "weight_decay": special.weight_decay,
    }
    name, args = recipe.optimizer.lower(), recipe.optimizer_args
    if special.optimizer is None:
        own_name, own_args = name, {**args, **special.optimizer_args}
    else:
        own_name, own_args = special.optimizer.lower(), special.optimizer_args
    made: list[torch.optim.Optimizer] = []
    if (own_name, own_args) == (name, args):
        groups.append(binary)
    elif binary["params"]:
        made.append(_create_bop(model, recipe, binary) if own_name == "bop" else _create(own_name, own_args, [binary]))
    return [_create(name, args, groups, "optimizer"), *made]


def binary_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The latent weights of `model`, by name: those of the layers that have a weight binariser.

    >>> from leanconv.nn import BinaryLinear
    >>> list(binary_parameters(nn.Sequential(nn.Linear(3, 4), BinaryLinear(4, 2))))
    ['1.weight']
    """
    return {f"{name}.weight" if name else "weight": layer.weight for name, layer in _binary_layers(model).items()}


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set the rate of each group to its base rate times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


@torch.no_grad()
def clip_latent_weights(model: nn.Module, bound: float) -> None:
    """Keep the latent weights of `model` within ``-bound..bound``, in place: beyond the clip of its binariser a weight
    gets no gradient and could stay there (arXiv 1602.02830; cited from memory).
    """
    for weight in binary_parameters(model).values():
        weight.clamp_(-bound, bound)


def _binary_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "binarize_weight")}


def _create(
    name: str, args: dict[str, Any], groups: list[Group], where: str = "binary_weights.optimizer"
) -> torch.optim.Optimizer:
    base = name.removeprefix("lookahead_")
    args = {key: _number(value) for key, value in args.items()}
    try:
        info = timm.optim.get_optimizer_info(base)
    except ValueError:
        raise RecipeError(f"{where}: {_unknown(base, where)}") from None
    if info.second_order:
        raise RecipeError(f"{where}: {base} needs second derivatives, which training doesn't compute; take another")
    try:
        known = _arguments(timm.optim.get_optimizer_class(base, bind_defaults=False))
        for key in args:
            if known is not None and key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise RecipeError(f"{where}_args: {base} has no {key!r}; {hint}")
        optimizer = timm.optim.create_optimizer_v2([group for group in groups if group["params"]], opt=name, **args)
    except RecipeError:
        raise
    except ImportError as error:
        raise RecipeError(f"{where}: {base} needs a library that is not installed ({error})") from None
    except (TypeError, ValueError, AssertionError) as error:
        given = f" with {args}" if args else ""
        raise RecipeError(f"{where}: {name} cannot be made{given} ({error or type(error).__name__})") from None
    return _with_base_rates(optimizer)


def _create_bop(model: nn.Module, recipe: Recipe, group: Group) -> torch.optim.Optimizer:
    special = recipe.binary_weights
    if special.learning_rate is None:
        raise RecipeError("binary_weights.learning_rate: bop needs one, its adaptivity rate; 1e-4 is a usual value")
    if special.weight_decay:
        raise RecipeError("binary_weights.weight_decay: bop moves no weights, so none can decay; leave it out")
    args = {key: _number(value) for key, value in special.optimizer_args.items()}
    for key in args:
        if key != "threshold":
            raise RecipeError(f"binary_weights.optimizer_args: bop has no {key!r}; known: threshold")
    with torch.no_grad():
        for module in _binary_layers(model).values():
            bound = module.binarize_weight.clip
            module.weight.clamp_(-bound, bound)
    try:
        return _with_base_rates(Bop(group["params"], lr=group["lr"], **args))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"binary_weights: {error}") from None


def _with_base_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _unknown(name: str, where: str) -> str:
    names = timm.optim.list_optimizers()
    if where != "optimizer":
        names = [*names, "bop"]
    elif name == "bop":
        return "bop trains binary weights only; name it under binary_weights.optimizer"
    near = difflib.get_close_matches(name, names, n=1)
    return f"unknown {name!r}; " + (f"did you mean {near[0]!r}?" if near else "timm.optim.list_optimizers() names them")


def _arguments(optimizer: Any) -> list[str] | None:
    """What can be given to an optimizer beside its parameters, rate and decay; None: anything."""
    parameters = inspect.signature(optimizer).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    return [name for name in list(parameters)[1:] if name not in ("lr", "weight_decay")]


def _number(value: Any) -> Any:
    """YAML reads 1e-8 as text: make it a number."""
    if isinstance(value, list):
        return tuple(_number(item) for item in value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
