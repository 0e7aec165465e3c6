"""Our entries in timm's registry, and which float network each binary one is compared with."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

from timm.models import register_model
from torch import nn

from leanconv import shipped
from leanconv.models.pretrained import declare_weights, with_weights

Entry = TypeVar("Entry", bound=Callable[..., nn.Module])

_models: list[str] = []
_float_twins: dict[str, str] = {}


def register(*, float_twin: str | None = None) -> Callable[[Entry], Entry]:
    """Register a model function with timm under its own name, with the weights that ship for it; binary networks name
    their float twin."""

    def decorate(entry: Entry) -> Entry:
        declare_weights(entry)
        made: Any = register_model(with_weights(entry))
        _models.append(entry.__name__)
        if float_twin is not None:
            _float_twins[entry.__name__] = float_twin
        return made

    return decorate


def list_models(*, binary: bool | None = None, pretrained: bool = False) -> list[str]:
    """Names of the networks that leanconv adds to timm, sorted; `binary` keeps only the binary or only the float
    ones, `pretrained` those whose trained weights ship.

    >>> "bireal_resnet18" in list_models(binary=True)
    True
    """
    trained = shipped.weights() if pretrained else _models
    return sorted(name for name in _models if name in trained and binary in (None, name in _float_twins))


def float_twin(name: str) -> str:
    """The float network that a binary one is compared with, a name for ``timm.create_model``.

    Raises: ValueError for a name without a twin.

    >>> float_twin("bireal_resnet18")
    'resnet18'
    """
    if name not in _float_twins:
        near = difflib.get_close_matches(name, _float_twins, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name!r} has no float twin: expected one of {', '.join(sorted(_float_twins))}{hint}")
    return _float_twins[name]


def picture_cfg(size: int, **entries: Any) -> dict[str, Any]:
    """timm's pretrained_cfg for a classifier on size x size colour pictures, without weights. Its last map
    (`pool_size`) has a 32nd of the sides."""
    cfg = {
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "num_classes": 1000,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
    }
    return cfg | entries


def cifar_cfg(**entries: Any) -> dict[str, Any]:
    """The same for CIFAR-10: 32x32, never cropped; the last of three stages has a quarter of the sides."""
    mean_std = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
    return picture_cfg(32, pool_size=(8, 8), crop_pct=1.0, num_classes=10, **mean_std) | entries


def digits_cfg(**entries: Any) -> dict[str, Any]:
    """The same for scikit-learn's digits: 8x8, one channel; the last of three stages has a quarter of the sides."""
    return (
        picture_cfg(8, pool_size=(2, 2), crop_pct=1.0, num_classes=10)
        | {
            "input_size": (1, 8, 8),
            "interpolation": "bilinear",
            "mean": (0.305,),
            "std": (0.376,),
        }
        | entries
    )
