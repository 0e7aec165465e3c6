"""A torch network with everything that compiling, exporting and measuring it needs: from a checkpoint or by name."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from leanconv import models, shipped  # before timm: prepares torchvision for it
from leanconv.pictures import smooth_pictures
from leanconv.preprocess import Preprocessing, normalize
from leanconv.program import Program
from leanconv.train import checkpoint

import timm  # isort: skip

if TYPE_CHECKING:
    from leanconv.compiler import Verification

TRAINING = ("top1", "split", "epoch", "recipe")  # what a packed file tells of the training run


class NetworkError(ValueError):
    """Neither a checkpoint nor a model's name; the text says what was meant, perhaps."""


@dataclass
class Network:
    """A model in evaluation mode, how timm makes it, and how its pictures are prepared."""

    model: nn.Module
    name: str | None
    arguments: dict[str, Any]
    rules: Preprocessing
    classes: list[str] | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def example(self, size: int | None = None, count: int = 2) -> Tensor:
        """Normalised pictures as the model takes them, float N,C,H,W."""
        channels, height, width = self.rules.input_size
        height, width = (size, size) if size else (height, width)
        return torch.from_numpy(normalize(smooth_pictures(count, height, width, channels), self.rules))

    def compile(
        self,
        size: int | None = None,
        *,
        verify: bool = True,
        calibration: np.ndarray | None = None,
        real_maps: Literal["fp32", "bf16"] = "fp32",
    ) -> tuple[Program, Verification | None]:
        """The packed program with preprocessing, classes and provenance, and what verifying it against torch found.

        With `calibration` (uint8 pictures N,H,W,C) the real-valued layers are quantised to int8; `real_maps` "bf16"
        then stores the maps between them in 16 bits.

        Raises CompileError.
        """
        from leanconv.compiler import compile_verified

        provenance: dict[str, Any] = {"model": self.name, "model_args": self.arguments}
        provenance |= {key: self.training[key] for key in TRAINING if key in self.training}
        rules = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.rules).items()}
        return compile_verified(
            self.model,
            self.example(size),
            preprocessing=rules,
            classes=self.classes,
            provenance=provenance,
            verify=verify,
            real_layers="fp32" if calibration is None else "int8",
            real_maps=real_maps,
            calibration=calibration,
        )


def find_network(text: str) -> Network:
    """A checkpoint file, or a model that timm knows by name: trained where its weights ship with us, else untrained.

    Raises NetworkError, CheckpointError.
    """
    path = Path(text)
    if path.is_file():
        return from_checkpoint(path)
    if path.suffix in (".safetensors", ".lconv", ".pt", ".pth", ".onnx") or "/" in text:
        raise NetworkError(f"{text}: no such file")
    return from_shipped(text) if text in shipped.weights() else from_name(text)


def from_shipped(name: str) -> Network:
    """A network with the trained weights that ship with the package. Raises WeightsError, ProgramError."""
    program = Program.load(models.weights_path(name))
    model = timm.create_model(name, pretrained=True).eval()
    training = {key: program.provenance[key] for key in TRAINING if key in program.provenance}
    return Network(model, name, {}, Preprocessing.from_dict(program.preprocessing), program.classes, training)


def from_checkpoint(path: str | Path) -> Network:
    """The network of a checkpoint that `leanconv train` wrote. Raises CheckpointError."""
    model, info = checkpoint.load(path)
    config = info["preprocessing"] or timm.data.resolve_data_config(model=model)
    return Network(
        model.eval(),
        info["model"],
        info["model_args"],
        Preprocessing.from_dict(config),
        info["classes"],
        info.get("training") or {},
    )


def from_name(name: str, **arguments: Any) -> Network:
    """An untrained network, always the same. Raises NetworkError."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*models.list_models(), *timm.list_models()], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise NetworkError(f"{name!r} is neither a file nor a model{hint} (`leanconv list` shows the models)")
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    config = timm.data.resolve_data_config(model=model)
    channels = int(arguments.get("in_chans", config["input_size"][0]))
    if channels != config["input_size"][0]:
        config["input_size"] = (channels, *config["input_size"][1:])
        config["mean"] = (sum(config["mean"]) / len(config["mean"]),) * channels
        config["std"] = (sum(config["std"]) / len(config["std"]),) * channels
    return Network(model, name, arguments, Preprocessing.from_dict(config))


def settle(model: nn.Module, floats: np.ndarray) -> None:
    """Give an untrained network activations of a usual spread: batch norm measured on `floats`, no weight of it zero.

    timm starts residual branches at zero: int8 rivals would then quantise constants, and agreement would show nothing.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    generator = torch.Generator().manual_seed(0)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(norm.bias, -0.2, 0.2, generator=generator)
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    with torch.no_grad():
        model(torch.from_numpy(floats))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
