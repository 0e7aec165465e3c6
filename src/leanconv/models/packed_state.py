"""A network's state dict inside its packed file, so that PyTorch can go on from there.

The operators of a Program hold real-valued weights and the signs of binary ones, but batch norms folded into affine
steps. :func:`store_state` adds what is missing as tensors that no operator names (the engine ignores them): batch
norms, other parameters, and one magnitude for each binary filter. A latent weight comes back as sign times magnitude.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leanconv.nn import WeightBinarizer, weight_scale
from leanconv.program import Op, Program, ProgramError, unpack_bits

PREFIX = "state/"
ENTRY = "state_shapes"  # in the provenance: shapes of the entries whose values the operators hold
COUNTER = ".num_batches_tracked"  # not kept: it matters to batch norms without momentum only


def store_state(model: nn.Module, program: Program) -> Program:
    """`program`, compiled from `model`, with everything that :func:`read_state` needs.

    Each latent weight of a binary layer becomes ``m * sign(w)`` with m the mean |w| over the filter of its output
    channel (at most the clip of an unscaled binariser, so that it can still learn). All else is kept exactly.

    Raises: ProgramError for entries that are not float32.
    """
    binary = {f"{name}.weight": m for name, m in model.named_modules() if _binarizer(m) is not None}
    operators = _operators(program)
    tensors, shapes = dict(program.tensors), {}
    for key, value in model.state_dict().items():
        if key.endswith(COUNTER):
            continue
        if value.dtype != torch.float32:
            raise ProgramError(f"{key} is {value.dtype}: a packed file holds float32 only; call model.float() before")
        array = value.detach().cpu().numpy()
        held = _held(program, operators, key, array.shape)
        if key in binary and held is not None and np.array_equal(held, np.where(array >= 0, 1, -1)):
            tensors[PREFIX + key] = _magnitude(binary[key])
        elif held is None or key in binary or not np.array_equal(held, array):
            tensors[PREFIX + key] = np.ascontiguousarray(array)
            continue
        shapes[key] = list(array.shape)
    return replace(program, tensors=tensors, provenance={**program.provenance, ENTRY: shapes})


def read_state(program: Program) -> dict[str, Tensor]:
    """The state dict that :func:`store_state` put into a Program. Raises ProgramError where there is none."""
    if ENTRY not in program.provenance:
        raise ProgramError("this packed file holds no state for PyTorch; start from the checkpoint that it was made of")
    operators = _operators(program)
    state = {}
    for key, shape in program.provenance[ENTRY].items():
        array = _held(program, operators, key, tuple(shape))
        if array is None:
            raise ProgramError(f"no operator of this packed file holds {key}; copy or download it again")
        state[key] = array
    for name, array in program.tensors.items():
        key = name.removeprefix(PREFIX)
        if key == name:
            continue
        if key in state:  # magnitudes of binary filters
            op = operators[key]
            state[key] = _as_weight(_taps(program, op) * array[:, None, None, None], op, state[key].shape)
        else:
            state[key] = array
    return {key: torch.from_numpy(np.array(array, np.float32)) for key, array in state.items()}


def without_state(program: Program) -> Program:
    """The Program alone, as `leanconv compile` writes it."""
    tensors = {name: tensor for name, tensor in program.tensors.items() if not name.startswith(PREFIX)}
    provenance = {key: value for key, value in program.provenance.items() if key != ENTRY}
    return replace(program, tensors=tensors, provenance=provenance)


def _binarizer(module: nn.Module) -> WeightBinarizer | None:
    found = getattr(module, "binarize_weight", None)
    return found if isinstance(found, WeightBinarizer) else None


def _magnitude(layer: Any) -> np.ndarray:
    """[out_channels]: the mean |w| of each filter, what a binary latent weight is restored with."""
    weight, transposed = layer.weight.detach(), isinstance(layer, nn.ConvTranspose2d)
    magnitude = weight_scale(weight, "magnitude", transposed=transposed, groups=getattr(layer, "groups", 1))
    assert magnitude is not None
    if layer.binarize_weight.kind == "sign":
        magnitude = magnitude.clamp(max=layer.binarize_weight.clip)
    tiny = torch.finfo(torch.float32).tiny  # not 0, which has no sign
    return magnitude.clamp(min=tiny).cpu().numpy()


def _operators(program: Program) -> dict[str, Op]:
    """The operators with weights by the tensor's name: the path of its module, so the key in the state dict."""
    return {op.tensors["weight"]: op for op in program.ops if "weight" in op.tensors}


def _held(program: Program, operators: dict[str, Op], key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """What an operator knows of an entry of the state dict: a real weight, or the signs of a binary one."""
    op = operators.get(key)
    if op is None:
        return None
    taps = _taps(program, op)
    return _as_weight(taps, op, shape) if taps.size == np.prod(shape, dtype=int) else None


def _taps(program: Program, op: Op) -> np.ndarray:
    """[out, kernel height, kernel width, in / groups], real or +-1."""
    stored = program.tensors[op.tensors["weight"]]
    if op.kind.startswith("binary"):
        return unpack_bits(stored, op.attrs["in_channels"] // op.attrs["groups"])
    return stored[:, None, None] if op.kind == "linear" else stored


def _as_weight(taps: np.ndarray, op: Op, shape: tuple[int, ...]) -> np.ndarray:
    """Taps in PyTorch's order of dimensions."""
    if op.kind == "binary_conv_transpose":  # [in, out / groups, *kernel]
        by_group = taps.reshape(op.attrs["groups"], -1, *taps.shape[1:])
        return by_group.transpose(0, 4, 1, 2, 3).reshape(shape)
    return taps.transpose(0, 3, 1, 2).reshape(shape)
