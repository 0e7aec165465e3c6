"""The state of a run, whole: nested dicts and lists of tensors and plain values in one safetensors file. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from leanconv.program import write_atomic

METADATA_KEY = "leanconv_run"


class StateError(ValueError):
    """A saved run that cannot be taken up; one line that says why and what to do."""


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a tree into JSON and tensors: each tensor is replaced by ``{"tensor": name}``.

    Raises: TypeError for what is neither a tensor, a container nor a plain value.

    >>> flatten({"lr": 0.1, "state": {0: torch.zeros(2)}})[0]
    {'dict': [['lr', 0.1], ['state', {'dict': [[0, {'tensor': 'state/0'}]]}]]}
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node.detach().cpu().contiguous()
            return {"tensor": path}
        if isinstance(node, dict):  # pairs, since JSON would turn the keys of optimizer states into text
            return {"dict": [[key, walk(value, f"{path}/{key}" if path else str(key))] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            items = [walk(value, f"{path}/{i}") for i, value in enumerate(node)]
            return items if isinstance(node, list) else {"tuple": items}
        if isinstance(node, torch.dtype):
            return {"dtype": str(node).removeprefix("torch.")}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(f"{path}: a {type(node).__name__} cannot be saved")

    return walk(tree, ""), tensors


def unflatten(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree that :func:`flatten` took apart."""
    if isinstance(node, list):
        return [unflatten(value, tensors) for value in node]
    if isinstance(node, dict):
        if "tensor" in node:
            return tensors[node["tensor"]]
        if "dtype" in node:
            return getattr(torch, node["dtype"])
        if "tuple" in node:
            return tuple(unflatten(value, tensors) for value in node["tuple"])
        return {key: unflatten(value, tensors) for key, value in node["dict"]}
    return node


def save(path: str | Path, tree: dict[str, Any]) -> None:
    """Write the tree (to a temporary name, then rename)."""
    plain, tensors = flatten(tree)
    # safetensors keeps no two tensors in one storage: copy those that share
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:
            tensors[name] = tensor.clone()
        seen.add(storage)
    write_atomic(path, save_tensors(tensors, metadata={METADATA_KEY: json.dumps(plain)}))


def load(path: str | Path) -> dict[str, Any]:
    """Read a tree back. Raises StateError."""
    try:
        with safe_open(str(path), framework="pt") as file:
            plain = json.loads((file.metadata() or {})[METADATA_KEY])
            return unflatten(plain, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except FileNotFoundError:
        raise StateError(f"{path}: no such file: there is no run to resume; leave out --resume to start one") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{path}: not the state of a run, or damaged ({error}); start again without --resume"
        ) from None
