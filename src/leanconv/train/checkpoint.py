"""Checkpoints: one safetensors file with the state dict and, as JSON under the metadata key ``leanconv``, how to
rebuild the network.

The JSON holds ``model`` (a timm name, or null for a network of the user's own), ``model_args``, ``convert`` (which
layers were replaced after that, or null), ``preprocessing`` (timm's meanings), ``classes`` and ``training`` (recipe,
seed, epoch, top1, ...).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import nn

from leanconv.program import write_atomic

METADATA_KEY = "leanconv"


class CheckpointError(ValueError):
    """A checkpoint that is damaged, foreign or does not fit its network; one line that says which and what to do."""


def save(
    path: str | Path,
    model: nn.Module,
    *,
    name: str | None = None,
    model_args: dict[str, Any] | None = None,
    convert: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
    classes: list[str] | None = None,
    training: dict[str, Any] | None = None,
) -> int:
    """Write a checkpoint (to a temporary name, then rename) and return its size in bytes.

    Args:
        name: what ``timm.create_model`` is to be called with, None for a network of your own.
        convert: the recipe's section of that name, where layers were replaced.
    """
    info = {
        "model": name,
        "model_args": model_args or {},
        "convert": convert,
        "preprocessing": preprocessing,
        "classes": classes,
        "training": training or {},
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    data = save_tensors(tensors, metadata={METADATA_KEY: json.dumps(info, allow_nan=False)})
    write_atomic(path, data)
    return len(data)


def read_info(path: str | Path) -> dict[str, Any]:
    """The JSON of a checkpoint, without loading its tensors. Raises CheckpointError."""
    return _open(path)[0]


def load(path: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a network from its checkpoint, in evaluation mode: (model, info).

    One from the first of two steps comes back with its weights used as real ones, as they were measured.

    Args: model: the network to fill, for checkpoints of networks that timm does not know.
    Raises: CheckpointError.
    """
    info, tensors = _open(path, with_tensors=True)
    if model is None:
        if info["model"] is None:
            raise CheckpointError(f"{path}: the checkpoint of a network of your own; pass the network as `model`")
        from leanconv import models  # noqa: F401  (registers our networks)

        import timm  # isort: skip

        try:
            model = timm.create_model(info["model"], **info["model_args"])
        except Exception as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{path}: cannot make its network {info['model']!r} ({line})") from None
        if info.get("convert"):
            from leanconv.train.setup import convert_layers

            model = convert_layers(model, info["convert"])
    expected = model.state_dict()
    for key in dict.fromkeys([*expected, *tensors]):
        if key not in tensors or key not in expected:
            which = "has no" if key not in tensors else "has an unexpected"
            raise CheckpointError(f"{path}: {which} tensor {key!r}; it is not a checkpoint of this network")
        if tensors[key].shape != expected[key].shape:
            shapes = f"{list(tensors[key].shape)}, the network {list(expected[key].shape)}"
            raise CheckpointError(f"{path}: tensor {key!r} has shape {shapes}")
    model.load_state_dict(tensors)
    if (info.get("training") or {}).get("real_weights"):
        from leanconv.nn import real_weights

        real_weights(model, True)
    return model.eval(), info


def load_fitting(path: str | Path, model: nn.Module) -> list[str]:
    """Fill `model` with the tensors of a checkpoint that have the name and shape of its own; return their names.

    So a binary network starts from its float twin, or one for ten classes from one for a thousand.
    Raises: CheckpointError, also where nothing fits.
    """
    _, tensors = _open(path, with_tensors=True)
    expected = model.state_dict()
    fitting = {key: t for key, t in tensors.items() if key in expected and t.shape == expected[key].shape}
    if not fitting:
        raise CheckpointError(f"{path}: none of its tensors has the name and shape of one of {type(model).__name__}'s")
    model.load_state_dict(fitting, strict=False)
    return sorted(fitting)


def _open(path: str | Path, with_tensors: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                kind = "a packed network" if metadata.get("format") == "leanconv" else "not one of leanconv's"
                raise CheckpointError(f"{path}: {kind}, but a checkpoint that `leanconv train` wrote is needed here")
            info = json.loads(metadata[METADATA_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()} if with_tensors else {}  # noqa: SIM118
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({error})") from None
    if not isinstance(info, dict) or not {"model", "model_args", "preprocessing", "classes"} <= info.keys():
        raise CheckpointError(f"{path}: its metadata entry {METADATA_KEY!r} is incomplete")
    return info, tensors
