"""One kind of layer for another: turns a network of ordinary layers into one of binary ones, weights and all."""

from __future__ import annotations

import copy
import difflib
import inspect
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

# Layers with weights that can be first or last in a network, and the arguments that their constructors share.
ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    **dict.fromkeys(
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    ),
}
ARGUMENTS |= {
    transposed: (*ARGUMENTS[nn.Conv2d], "output_padding")
    for transposed in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
}
NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)


class ConvertError(ValueError):
    """Layers that cannot be replaced as asked; one line that names the layer or pattern and a way out."""


def convert(
    model: nn.Module,
    layer: type[nn.Module],
    *,
    skip: Iterable[str] = ("first", "last"),
    only: Iterable[str] = (),
    **arguments: Any,
) -> nn.Module:
    """Replace layers of `model` by `layer`, in place, and return the model; :func:`convertible` lists which.

    The weight and bias of a new layer are the *same parameters* as the old one's, so their values, an optimizer that
    holds them and the names in the state dict stay; parameters that only the new layer has keep their initial values.
    Sizes, stride, padding, groups, bias, device, dtype and training mode are the old layer's.

    Args:
        layer: what to put in, for instance :class:`~leanconv.nn.BinaryConv2d` for every ``nn.Conv2d``. A subclass of a
            torch layer replaces exactly that layer and is called with its arguments. Any other class says what it
            replaces by the attribute ``replaces`` (a torch layer); one with a class method ``from_layer(old,
            **arguments)`` is made by that.
        skip: layers to leave alone: patterns, ``"first"`` and ``"last"`` (timm's ``first_conv`` and ``classifier``
            where the model names them, else the first and last convolution or dense layer in the order of
            ``model.modules()``).
        only: patterns; without any, every layer that fits.
        arguments: further arguments of `layer`, as ``binarize_weight="magnitude"``. Each new layer gets its own copy of
            a module among them.

    A pattern is a module's name with the wildcards of :mod:`fnmatch` (``*`` crosses dots) and stands for that module
    and everything in it: ``"layer1"``, ``"layer*.conv2"``, ``"*conv_dw"``. A subclass of the torch layer stays, since
    it may compute something else (timm's ``Conv2dSame``), and so do layers of another kind.

    After a ReLU every input of a binary layer is +1, so build the network with another activation
    (``timm.create_model("resnet18", act_layer="prelu")``) or use ``binarize_input="rsign"``; a warning says so. A
    network that reads a layer's weight instead of calling the layer goes on computing with the real weight.

    Raises: ConvertError where nothing fits, a pattern matches nothing that could be meant, or a layer would lose
    something (hooks, parametrizations, a ``padding_mode``, an option that `layer` lacks); the model is then unchanged.

    >>> from leanconv.nn import BinaryConv2d
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    >>> convertible(model, BinaryConv2d)
    ['2']
    >>> type(convert(model, BinaryConv2d, binarize_weight="magnitude")[2]).__name__
    'BinaryConv2d'
    """
    names = _chosen(model, layer, skip, only)
    old = {name: model.get_submodule(name) for name in names}
    new = {name: _replacement(name, module, layer, arguments) for name, module in old.items()}
    if any(hasattr(made, "binarize_input") for made in new.values()) and arguments.get("binarize_input") != "rsign":
        _warn_of_relu(model)
    by_old = {id(module): new[name] for name, module in old.items()}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) not in by_old:
            continue
        if not name:
            return by_old[id(module)]
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, by_old[id(module)])
    return model


def convertible(
    model: nn.Module, layer: type[nn.Module], *, skip: Iterable[str] = ("first", "last"), only: Iterable[str] = ()
) -> list[str]:
    """Names of the modules that :func:`convert` would replace, in the model's order; a shared one once.

    Raises: ConvertError, as :func:`convert` does for names and patterns.
    """
    return _chosen(model, layer, skip, only)


def _source(layer: type[nn.Module]) -> type[nn.Module]:
    """The torch layer that `layer` replaces."""
    bases = [getattr(layer, "replaces", None), *layer.__mro__[1:]]
    for base in bases:
        if base in ARGUMENTS:
            return base
    raise ConvertError(
        f"{layer.__name__} does not say what it replaces; give a subclass of nn.Conv2d, nn.Linear, ..., or a class "
        "with the attribute `replaces`"
    )


def _chosen(model: nn.Module, layer: type[nn.Module], skip: Iterable[str], only: Iterable[str]) -> list[str]:
    source = _source(layer)
    if isinstance(skip, str) or isinstance(only, str):
        raise ConvertError("skip and only are lists of names and patterns, not one string")
    skip, only = list(skip), list(only)
    names = _names(model)
    ends = {"first": _first(model, names), "last": _last(model, names)}
    skipped = {id(m) for word in skip if word in ends for m in ends[word]}
    for pattern in [p for p in skip if p not in ends]:
        skipped |= {id(m) for m in _matching(names, pattern, "skip")}
    fits = {id(m) for m, _ in names if parametrize.type_before_parametrizations(m) is source}
    wanted = set(fits)
    if only:
        wanted = set()
        for pattern in only:
            matched = _matching(names, pattern, "only")
            if not fits & {id(m) for m in matched}:
                kinds = ", ".join(sorted({type(m).__name__ for m in matched}))
                raise ConvertError(
                    f"only: {pattern!r} matches no {source.__name__} that {layer.__name__} could replace, but {kinds}"
                )
            wanted |= fits & {id(m) for m in matched}
    chosen = [(m, paths[0]) for m, paths in names if id(m) in wanted - skipped]
    if not chosen:
        left = f" ({len(wanted)} left out by skip={skip})" if wanted else ""
        raise ConvertError(f"{type(model).__name__} has no {source.__name__} to replace by {layer.__name__}{left}")
    for module, name in chosen:
        _check(module, name)
    return [name for _, name in chosen]


def _names(model: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """Every module with all of its names."""
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), (module, []))[1].append(name)
    return list(found.values())


def _matching(names: list[tuple[nn.Module, list[str]]], pattern: str, where: str) -> list[nn.Module]:
    """The modules that a pattern matches, and everything in them. Raises ConvertError where there are none."""
    found = [m for module, paths in names if any(fnmatchcase(p, pattern) for p in paths) for m in module.modules()]
    if not found:
        near = difflib.get_close_matches(pattern, [p for _, paths in names for p in paths], n=3)
        hint = f"; near are {', '.join(near)}" if near else "; model.named_modules() lists the names"
        raise ConvertError(f"{where}: {pattern!r} matches no module{hint}")
    return found


def _first(model: nn.Module, names: list[tuple[nn.Module, list[str]]]) -> list[nn.Module]:
    return _declared(model, "first_conv") or [m for m, _ in names if isinstance(m, tuple(ARGUMENTS))][:1]


def _last(model: nn.Module, names: list[tuple[nn.Module, list[str]]]) -> list[nn.Module]:
    return _declared(model, "classifier") or [m for m, _ in names if isinstance(m, tuple(ARGUMENTS))][-1:]


def _declared(model: nn.Module, key: str) -> list[nn.Module]:
    """The modules that timm's configuration of a model names as its first or last layers."""
    config = getattr(model, "pretrained_cfg", None)
    declared = (config.get(key) if isinstance(config, dict) else None) or ()
    modules = dict(model.named_modules())
    return [modules[n] for n in ([declared] if isinstance(declared, str) else declared) if n in modules]


def _check(module: nn.Module, name: str) -> None:
    """Refuse a layer that would lose something. Raises ConvertError."""
    hooks = any(getattr(module, f"_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre"))
    loses = None
    if parametrize.is_parametrized(module):
        loses = "parametrizations (remove them by torch.nn.utils.parametrize.remove_parametrizations)"
    elif hooks:
        loses = "hooks (remove them and register them on the new layer)"
    elif getattr(module, "padding_mode", "zeros") != "zeros":
        loses = f"padding_mode={module.padding_mode!r}"
    if loses:
        raise ConvertError(f"layer {name or '(the model itself)'} would lose its {loses}; or add its name to skip")


def _replacement(name: str, old: nn.Module, layer: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    """A new layer with the old one's weight and bias. Raises ConvertError."""
    arguments = {k: copy.deepcopy(v) if isinstance(v, nn.Module) else v for k, v in arguments.items()}
    make = getattr(layer, "from_layer", None)
    try:
        new: nn.Module = make(old, **arguments) if make else layer(**_constructor(name, old, layer), **arguments)
    except ConvertError:
        raise
    except (TypeError, ValueError) as error:
        raise ConvertError(f"layer {name or '(the model itself)'}: {layer.__name__} cannot be made ({error})") from None
    weight: Any = old.weight
    new.to(device=weight.device, dtype=weight.dtype)
    if make is None:
        if getattr(new, "weight", weight).shape != weight.shape:
            raise ConvertError(f"layer {name}: {layer.__name__} has a weight of another shape; give it a from_layer()")
        new.weight, new.bias = weight, old.bias
    return new.train(old.training)


def _constructor(name: str, old: nn.Module, layer: type[nn.Module]) -> dict[str, Any]:
    """The old layer's arguments, as far as `layer` has them; the rest must have their defaults."""
    takes = inspect.signature(layer).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    defaults = inspect.signature(_source(layer)).parameters
    given = {key: getattr(old, key) for key in ARGUMENTS[_source(layer)]} | {"bias": old.bias is not None}
    for key in [k for k in given if k not in takes and not anything]:
        value, default = given.pop(key), False if key == "bias" else defaults[key].default
        plain = value == default or (isinstance(value, tuple) and set(value) == {default})
        if not plain:
            raise ConvertError(f"layer {name} has {key}={value}, which {layer.__name__} lacks; add its name to skip")
    return given


def _warn_of_relu(model: nn.Module) -> None:
    if any(isinstance(m, NEVER_NEGATIVE) for m in model.modules()):
        warnings.warn(
            "this network has activations that are never negative, such as ReLU: a binary layer right after one sees "
            "+1 everywhere. Build it with another activation (timm: act_layer='prelu'), or use binarize_input='rsign'",
            stacklevel=3,
        )
