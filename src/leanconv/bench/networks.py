"""Handing a torch network to a worker process and getting its reference output. Needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from leanconv import models  # noqa: F401  registers our names with timm, and prepares torchvision for it
from leanconv.bench import chains
from leanconv.networks import Network

import timm  # isort: skip


def save_network(network: Network, path: Path) -> None:
    """Write name, arguments and weights as safetensors."""
    from safetensors.torch import save_file

    state = {key: value.detach().clone().contiguous() for key, value in network.model.state_dict().items()}
    about = json.dumps({"name": network.name, "arguments": network.arguments})
    save_file(state, path, metadata={"network": about})


def load_network(path: str | Path) -> nn.Module:
    """The model that :func:`save_network` (or :func:`leanconv.bench.chains.save`) wrote, in evaluation mode."""
    if Path(path).suffix == ".json":
        return chains.load(Path(path))
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, framework="np") as file:
        about = json.loads(file.metadata()["network"])
    model: nn.Module = timm.create_model(about["name"], **about["arguments"])
    model.load_state_dict(load_file(path))
    return model.eval()


def logits(model: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """The first output of a torch model."""
    with torch.inference_mode():
        output = model(torch.from_numpy(pictures))
    return np.asarray((output[0] if isinstance(output, (tuple, list)) else output).numpy())
