"""torch.export with the sizes that a Program may leave free, and the proof that they are free."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from leanconv.compiler.errors import CompileError
from leanconv.nn.binarize import RealWeightsError
from leanconv.program import Program, ProgramError, infer_sizes

TRIED_SIZES = [*range(1, 130), *range(131, 1025, 7)]


@dataclass
class Exported:
    """An exported network with the example it was exported on (batch at least 2)."""

    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode and without gradients; every module's own mode is restored afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def as_arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example (tensor, tuple of tensors, or dict of keyword arguments) as args and kwargs, with a batch of at least
    two.

    A batch of one is doubled: torch.export would take the number 1 for a constant.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        known = [name for name in inspect.signature(model.forward).parameters if name in example]
        kwargs = {name: example[name] for name in [*known, *(n for n in example if n not in known)]}
    elif isinstance(example, (tuple, list)):
        args = tuple(example)
    else:
        args = (example,)
    tensors = [*args, *kwargs.values()]
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32 or tensor.dim() not in (2, 3, 4):
            got = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CompileError(
                f"the example must be a float32 tensor N,C,H,W, N,C,L or N,C (or a tuple or dict of them), got {got}"
            )
    if not tensors:
        raise CompileError("the example holds no tensor: give one input, such as torch.zeros(1, 3, 224, 224)")
    batches = {t.shape[0] for t in tensors}
    if len(batches) != 1 or 0 in batches:
        raise CompileError(f"the example's inputs have different or empty batches: {sorted(batches)}")

    def enough(t: Tensor) -> Tensor:
        t = t.detach()
        return torch.cat([t, t]) if t.shape[0] == 1 else t

    return tuple(enough(t) for t in args), {k: enough(t) for k, t in kwargs.items()}


def export_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free: bool) -> Exported:
    """Export `model` with a dynamic batch and, with `free`, dynamic heights and widths. Raises CompileError."""
    import leanconv.nn.markers  # noqa: F401  (registers the marker operators)

    batch = Dim("batch", min=1)

    def shape_of(tensor: Tensor) -> dict[int, Any]:
        return {0: batch, **({d: Dim.AUTO for d in range(2, tensor.dim()) if tensor.shape[d] > 1} if free else {})}

    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise CompileError(f"the example does not fit forward() of {type(model).__name__}: {error}") from None
    shapes = pytree.tree_map_only(Tensor, shape_of, dict(bound))
    with evaluation(model):
        try:
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except RealWeightsError as error:
            raise CompileError(str(error)) from None
        except Exception as error:
            text = " ".join(str(error).split("\n\n")[0].split())[:500]
            raise CompileError(
                f"torch.export cannot trace {type(model).__name__}: {text}; make forward() free of branches on tensor "
                "values and on the batch size, and check that the example fits the model"
            ) from error
    return Exported(program, args, kwargs)


# -------------------------------------------------------------------------------------------- which sizes are free


def free_sizes(exported: Exported, program: Program) -> bool:
    """Whether the Program holds for other heights and widths than the example's: what torch.export proved, checked on
    sizes.

    torch.export records as guards what it assumed about the sizes. They must hold for every tried size that the Program
    itself accepts, save those where some map shrinks to a height or width of 1: torch always assumes that it does not.
    """
    symbols = _size_symbols(exported.program, program)
    if not symbols:
        return True
    guards = _guards(exported.program)
    hints = {symbol: hint for symbol, hint, _, _ in symbols}
    usual = _sizes(program, symbols, hints)
    if not usual:  # the Program does not even take the example: sizes were equal that it takes for different ones
        return False

    def contradicts(trial: dict[str, int]) -> bool:
        sizes = _sizes(program, symbols, trial)
        return bool(sizes) and not any(
            now == 1 != then for a, b in zip(sizes, usual, strict=True) for now, then in zip(a, b, strict=True)
        )

    trials = [{**hints, s: size} for s in hints for size in TRIED_SIZES] + [
        dict.fromkeys(hints, n) for n in TRIED_SIZES
    ]
    for trial in trials:
        try:
            satisfied = all(guard(trial) for guard in guards)
        except (KeyError, NameError, ZeroDivisionError, TypeError):
            return False
        if not satisfied and contradicts(trial):
            return False
    return _independent(symbols, program, hints)


def _size_symbols(exported: ExportedProgram, program: Program) -> list[tuple[str, int, int, int]]:
    """(symbol, example size, input number, 0 height | 1 width) of every free height and width."""
    found = []
    placeholders = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
    for number, name in enumerate(exported.graph_signature.user_inputs):
        if program.inputs[number].dims == 2:
            continue
        shape = placeholders[name].meta["val"].shape
        for axis, size in enumerate((1, *shape[2:]) if len(shape) == 3 else shape[2:]):
            if isinstance(size, torch.SymInt):
                found.append((str(size), int(size.node.hint), number, axis))
    return found


def _guards(exported: ExportedProgram) -> list[Callable[[dict[str, int]], bool]]:
    """The guards as functions of the sizes by symbol."""
    import sympy  # type: ignore[import-untyped]

    sizes = [
        s
        for n in exported.graph.nodes
        if n.op == "placeholder" and isinstance(n.meta.get("val"), Tensor)
        for s in n.meta["val"].shape
        if isinstance(s, torch.SymInt)
    ]
    if not sizes:
        return []
    environment = sizes[0].node.shape_env
    names: dict[str, Any] = {
        "FloorDiv": operator.floordiv,
        "CleanDiv": operator.floordiv,
        "Mod": operator.mod,
        "PythonMod": operator.mod,
        "Max": max,
        "Min": min,
        "Eq": operator.eq,
        "Ne": operator.ne,
    }
    functions: list[Callable[[dict[str, int]], bool]] = []
    batch = _batch(exported)
    equal = {a: b for a, b in environment.replacements.items() if b.is_Symbol}  # see _independent
    for guard in [*environment.guards, *(g for gs in environment.deferred_runtime_asserts.values() for g in gs)]:
        expression = guard.expr.xreplace(equal)
        if expression == sympy.true:
            continue
        symbols = sorted(expression.free_symbols, key=str)
        if [str(s) for s in symbols] == [batch]:
            continue
        function = sympy.lambdify(symbols, expression, modules=[names, "math"])
        functions.append(partial(_holds, function, [str(s) for s in symbols]))
    for symbol, bounds in environment.var_to_range.items():
        functions.append(partial(_within, str(symbol), bounds.lower, bounds.upper))
    return functions


def _holds(function: Callable[..., Any], symbols: list[str], sizes: dict[str, int]) -> bool:
    return bool(function(*(sizes[s] for s in symbols)))


def _within(symbol: str, low: Any, high: Any, sizes: dict[str, int]) -> bool:
    return symbol not in sizes or bool(low <= sizes[symbol] <= high)


def _batch(exported: ExportedProgram) -> str:
    """The symbol of the batch dimension."""
    placeholders = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
    return str(placeholders[exported.graph_signature.user_inputs[0]].meta["val"].shape[0])


def _sizes(program: Program, symbols: list[tuple[str, int, int, int]], trial: dict[str, int]) -> list[tuple[int, int]]:
    """The sizes of all maps for a trial; empty where the Program refuses it."""
    sizes = [[i.height or 1, i.width or 1] for i in program.inputs]
    for symbol, _, number, axis in symbols:
        sizes[number][axis] = trial[symbol]
    try:
        return infer_sizes(program, {i.value: (s[0], s[1]) for i, s in zip(program.inputs, sizes, strict=True)})
    except ProgramError:
        return []


def _independent(symbols: list[tuple[str, int, int, int]], program: Program, hints: dict[str, int]) -> bool:
    """Sizes that torch found to be one and the same may differ only where the Program refuses that itself."""
    for k, (symbol, hint, _, _) in enumerate(symbols):
        if any(symbol == other[0] for other in symbols[:k]):
            renamed = [*symbols[:k], (f"{symbol}'", *symbols[k][1:]), *symbols[k + 1 :]]
            if any(_sizes(program, renamed, {**hints, f"{symbol}'": hint + d}) for d in (1, 2, 16, 32)):
                return False
    return True
