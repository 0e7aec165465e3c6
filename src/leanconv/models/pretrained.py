"""Weights that come with the package: ``timm.create_model(name, pretrained=True)`` for our networks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from leanconv import shipped
from leanconv.models.packed_state import COUNTER, read_state
from leanconv.program import Program

SOURCES = ("url", "file", "state_dict", "hf_hub_id")  # where timm's pretrained_cfg can name weights
PREPARATION = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


class WeightsError(ValueError):
    """Trained weights that do not exist or do not fit; one line that says which network and what to do."""


def weights_path(name: str) -> Path:
    """The packed file with the trained weights of a network. Raises WeightsError where none ship with it.

    >>> weights_path("bireal_digits").name
    'bireal_digits.lconv'
    """
    files = shipped.weights()
    if name not in files:
        known = ", ".join(files) or "none"
        raise WeightsError(
            f"no pretrained weights ship for {name!r} (there are some for: {known}); train it, or use pretrained=False"
        )
    return files[name]


def declare_weights(entry: Callable[..., nn.Module]) -> None:
    """Tell timm of the shipped weights before `entry` is registered, so that ``timm.list_models(pretrained=True)``
    shows it."""
    path = shipped.weights().get(entry.__name__)
    default = getattr(sys.modules[entry.__module__], "default_cfgs", {}).get(entry.__name__)
    if path is not None and default is not None:
        default.is_pretrained = True
        default.cfgs[default.tags[0]] = replace(default.default, file=str(path))


def with_weights(entry: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A model function that, with ``pretrained=True``, fills the network from the packed file that ships with us, or
    from one that ``pretrained_cfg_overlay={"file": "mine.lconv"}`` names; weights of another kind are timm's matter.

    timm adapts them as any others: another ``num_classes`` gets a fresh classifier, another ``in_chans`` a summed or
    repeated first convolution, ``features_only`` leaves the head out. The network's ``pretrained_cfg`` says how
    the pictures were prepared and names the classes.

    Raises: WeightsError where no weights ship, or those that do don't fit the network's other arguments.
    """

    @functools.wraps(entry)
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if not pretrained:
            return entry(pretrained=False, **kwargs)
        overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
        source = _source(kwargs.get("pretrained_cfg")) | _source(overlay)
        if source and not str(source.get("file", "")).endswith(".lconv"):
            return entry(pretrained=True, pretrained_cfg_overlay={"file": None} | source | overlay, **kwargs)
        program = Program.load(source.get("file") or weights_path(entry.__name__))
        state = read_state(program)
        overlay = _described(program) | overlay | {"state_dict": state}
        try:
            model = entry(pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
        except RuntimeError as error:
            raise _misfit(entry.__name__, " ".join(str(error).split())[:300]) from None
        for module in model.modules():
            getattr(module, "pretrained_cfg", {}).pop("state_dict", None)
        if not kwargs.get("features_only"):
            _check_filled(entry.__name__, model, state)
        return model

    return create


def _source(config: Any) -> dict[str, Any]:
    """Where a pretrained_cfg or an overlay (a dict, a PretrainedCfg, a tag or None) says that weights are."""
    entries = config if isinstance(config, dict) else getattr(config, "__dict__", {})
    return {key: entries[key] for key in SOURCES if entries.get(key)}


def _described(program: Program) -> dict[str, Any]:
    """What the packed file says about the pictures and classes, as entries of timm's pretrained_cfg."""
    rules = program.preprocessing or {}
    entries = {k: tuple(v) if isinstance(v := rules[k], list) else v for k in PREPARATION if k in rules}
    if program.classes:
        entries |= {"num_classes": len(program.classes), "label_names": tuple(program.classes)}
    return entries


def _check_filled(name: str, model: nn.Module, state: dict[str, Any]) -> None:
    """A fresh classifier is welcome, anything else that stayed untrained is not: timm only logs it."""
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    classifier = config.get("classifier") or ()
    fresh = tuple(f"{c}." for c in ([classifier] if isinstance(classifier, str) else classifier))
    for key in model.state_dict().keys() ^ state.keys():
        if not key.startswith(fresh) and not key.endswith(COUNTER):
            raise _misfit(name, f"{key} is on one side only")


def _misfit(name: str, reason: str) -> WeightsError:
    return WeightsError(
        f"the pretrained weights of {name!r} do not fit this network ({reason}); leave out the arguments that change "
        "its layers, or use pretrained=False"
    )
