"""From a PyTorch model to a Program: export, lower, fuse, verify, and, if asked for, quantise.

:func:`compile` is the whole of it. What can be lowered is listed in docs/compiler.md; anything else raises
CompileError.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from leanconv.compiler.emit import Fused, fuse_graph
from leanconv.compiler.errors import CompileError
from leanconv.compiler.export import Exported, as_arguments, export_model, free_sizes
from leanconv.compiler.lower import Lowering
from leanconv.compiler.quantize import Quantization, quantize_program
from leanconv.compiler.verify import Verification, verify_compiled
from leanconv.nn.exporting import lowering
from leanconv.program import Program

__all__ = ["CompileError", "Quantization", "Verification", "compile", "compile_verified"]


def compile(
    model: nn.Module,
    example: Any,
    *,
    preprocessing: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    provenance: dict[str, Any] | None = None,
    verify: bool = True,
    real_layers: Literal["fp32", "int8"] = "fp32",
    real_maps: Literal["fp32", "bf16"] = "fp32",
    calibration: Any = None,
) -> Program:
    """Compile `model` into a Program: ``program.save("model.lconv")`` makes the file that the engine runs.

    The model is exported in eval mode (its own mode is restored). The batch is free; height and width are free where
    the network works for every size, else fixed to the example's.

    Args:
        model: a network of the layers of `leanconv.nn` and the float operators of docs/compiler.md, in float32.
        example: an input (float32 N,C,H,W, N,C,L or N,C), a tuple of inputs, or a dict of them by the names that
            forward() gives them.
        preprocessing: timm's keys (docs/format.md); needed to run on uint8 pictures.
        classes: names of the classes.
        provenance: further facts about the origin, such as recipe, seed, top1.
        verify: compare every operator with PyTorch and, where built, the native engine; see
            :mod:`leanconv.compiler.verify`.
        real_layers: "int8" computes convolutions and dense layers with real weights in 8 bits; see
            :mod:`leanconv.compiler.quantize`. The network is verified in fp32 before; what int8 changes is measured.
        real_maps: "bf16" (with int8 layers) stores the real maps between operators, such as residual sums, in 16 bits;
            arithmetic stays float32. See :mod:`leanconv.compiler.bf16`.
        calibration: for int8, a few dozen usual inputs (as `example`): their values decide the ranges of the
            activations. With `preprocessing`, uint8 pictures N,H,W,C: then the first layer computes on their bytes, and
            the network takes uint8 pictures alone.

    Raises: CompileError, naming layer, reason and way out, for what cannot be lowered or does not verify.

    >>> import leanconv.nn as lnn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), lnn.BinaryConv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    >>> [op.kind for op in compile(model, torch.zeros(1, 3, 8, 8)).ops]
    ['conv', 'binary_conv']
    """
    program, _ = compile_verified(
        model,
        example,
        preprocessing=preprocessing,
        classes=classes,
        provenance=provenance,
        verify=verify,
        real_layers=real_layers,
        real_maps=real_maps,
        calibration=calibration,
    )
    return program


def compile_verified(
    model: nn.Module,
    example: Any,
    *,
    preprocessing: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    provenance: dict[str, Any] | None = None,
    verify: bool = True,
    real_layers: Literal["fp32", "int8"] = "fp32",
    real_maps: Literal["fp32", "bf16"] = "fp32",
    calibration: Any = None,
) -> tuple[Program, Verification | None]:
    """As :func:`compile`, with what the verification found (None without it)."""
    if real_layers not in ("fp32", "int8"):
        raise CompileError(f"real_layers is {real_layers!r}; choose fp32 or int8")
    if real_layers == "int8" and calibration is None:
        raise CompileError("int8 layers need a few dozen inputs to measure ranges on: give calibration=pictures")
    if real_maps not in ("fp32", "bf16"):
        raise CompileError(f"real_maps is {real_maps!r}; choose fp32 or bf16")
    if real_maps == "bf16" and real_layers != "int8":
        raise CompileError("real maps in bf16 go with int8 layers: give real_layers='int8', or leave real_maps at fp32")
    exported, fused = lowered(model, example)
    program = fused.program
    program.preprocessing = preprocessing
    program.classes = None if classes is None else [str(c) for c in classes]
    program.provenance = {**_provenance(model), **(provenance or {})}
    verification = verify_compiled(model, exported, fused) if verify else None
    if real_layers == "int8":
        program, quantization = quantize_program(program, _calibration(program, calibration), verify, real_maps)
        if verification is not None:
            verification.quantization = quantization
    return program, verification


def lowered(model: nn.Module, example: Any) -> tuple[Exported, Fused]:
    """Exported and fused: with free heights and widths where the network can be lowered so and they are proved free."""
    args, kwargs = as_arguments(model, example)
    _check_parameters(model)
    with lowering():
        try:
            exported = export_model(model, args, kwargs, free=True)
            fused = fuse_graph(Lowering(exported).run())
            if free_sizes(exported, fused.program):
                return exported, fused
        except CompileError:
            pass  # what is wrong for every size is reported below
        exported = export_model(model, args, kwargs, free=False)
        return exported, fuse_graph(Lowering(exported).run())


def _calibration(program: Program, given: Any) -> list[np.ndarray]:
    """One array an input, uint8 N,H,W,C or float32, of equal batches. Raises CompileError."""
    if isinstance(given, Mapping):
        names = [i.name for i in program.inputs]
        if set(given) != set(names):
            raise CompileError(f"the calibration has inputs {list(given)}, the network {names}")
        given = tuple(given[name] for name in names)
    arrays = [
        np.ascontiguousarray(a.detach().cpu().numpy() if isinstance(a, torch.Tensor) else a)
        for a in (given if isinstance(given, (tuple, list)) else (given,))
    ]
    if len(arrays) != len(program.inputs):
        raise CompileError(f"the calibration has {len(arrays)} inputs, the network {len(program.inputs)}")
    if len({len(a) if a.ndim else 0 for a in arrays}) != 1 or not arrays[0].ndim or not len(arrays[0]):
        raise CompileError("the calibration's inputs have different or empty batches")
    for a in arrays:
        if a.dtype not in (np.uint8, np.float32):
            raise CompileError(f"the calibration is {a.dtype}; give uint8 pictures N,H,W,C or float32 inputs")
    return arrays


def _check_parameters(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise CompileError(
                f"parameter {name} is {parameter.dtype}, not float32; call model.float() before compiling"
            )


def _provenance(model: nn.Module) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("leanconv")
    except PackageNotFoundError:
        own = "unknown"
    seconds = os.environ.get("SOURCE_DATE_EPOCH")  # for files that come out the same twice
    now = (
        datetime.datetime.fromtimestamp(int(seconds), datetime.UTC) if seconds else datetime.datetime.now(datetime.UTC)
    )
    return {
        "model": type(model).__name__,
        "leanconv": own,
        "torch": str(torch.__version__),
        "created": now.isoformat(timespec="seconds"),
    }
