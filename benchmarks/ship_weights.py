"""Puts trained networks into the package, where `timm.create_model(name, pretrained=True)` finds them.

    python benchmarks/ship_weights.py runs/cifar10/bireal_resnet20_cifar-0/checkpoint.safetensors

Each checkpoint is compiled (verified against PyTorch), written with what PyTorch needs to go on from it, read back,
restored, compiled again and compared. Only then src/leanconv/weights/<model>.lconv is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanconv import shipped
from leanconv.cli.errors import CommandError, guarded
from leanconv.models import list_models
from leanconv.models.packed_state import store_state, without_state
from leanconv.networks import Network, from_checkpoint
from leanconv.program import Program, write_atomic

import timm  # isort: skip

LIMIT = 1_000_000  # bytes
TOLERANCE = 1e-6  # relative, of per-channel factors: a filter's magnitude is averaged anew


def check_shippable(path: Path, network: Network) -> None:
    """Raises CommandError for a checkpoint whose network `timm.create_model(name)` alone does not make, or that was not
    measured on the test split."""
    if network.name not in list_models():
        raise CommandError(f"{path}: {network.name!r} is not one of leanconv's models")
    if set(network.model.state_dict()) != set(timm.create_model(network.name).state_dict()):
        raise CommandError(f"{path}: its layers are not those of timm.create_model({network.name!r})")
    config = timm.get_pretrained_cfg(network.name)
    usual = {"num_classes": config.num_classes, "in_chans": config.input_size[0]}
    other = {key: value for key, value in network.arguments.items() if usual.get(key) != value}
    if other:
        raise CommandError(f"{path}: made with {other}; only a network with its default arguments can ship")
    if network.training.get("split") != "test" or "top1" not in network.training:
        raise CommandError(f"{path}: has no top-1 on the test split; train it without held-out pictures")


def without_folders(entry: Any) -> Any:
    """A recipe with file names in place of absolute paths, which mean nothing elsewhere.

    >>> without_folders({"data": "npz:/home/me/cifar10.npz", "epochs": 3})
    {'data': 'npz:cifar10.npz', 'epochs': 3}
    """
    if isinstance(entry, dict):
        return {key: without_folders(value) for key, value in entry.items()}
    return re.sub(r"(^|:)/(?:[^/]*/)*", r"\1", entry) if isinstance(entry, str) else entry


def packed(path: Path, classes: list[str] | None) -> tuple[str, Program]:
    """The name and the file of a checkpoint, with the state for PyTorch. Raises CommandError."""
    network = from_checkpoint(path)
    if classes is not None and len(classes) != len(network.classes or []):
        raise CommandError(f"--classes: {len(classes)} names for {len(network.classes or [])} classes")
    network.classes = classes or network.classes
    check_shippable(path, network)
    network.training["recipe"] = without_folders(network.training.get("recipe"))
    program, verification = network.compile()
    print(f"{path}: {verification}")
    full = store_state(network.model, program)
    size = len(full.to_bytes())
    if size > LIMIT:
        raise CommandError(f"{path}: {size:,} bytes packed, more than the {LIMIT:,} that may ship")
    assert network.name is not None
    return network.name, full


def check_restored(name: str, file: Path, original: Network) -> None:
    """The network that PyTorch gets from `file` is the one that was packed. Raises CommandError."""
    restored = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
    again = Network(restored, name, {}, original.rules, original.classes, original.training)
    program, _ = again.compile(verify=False)
    expected = without_state(Program.load(file))
    for key, tensor in expected.tensors.items():
        if not np.allclose(program.tensors[key], tensor, rtol=TOLERANCE, atol=0):
            raise CommandError(f"{file}: {key} does not come back from the file")
    x = original.example(count=8)
    with torch.inference_mode():
        a, b = original.model(x), restored(x)
    if not torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.square().mean().sqrt())):
        raise CommandError(f"{file}: outputs of the restored network differ by up to {float((a - b).abs().max()):.1e}")


def ship(path: Path, folder: Path, classes: list[str] | None = None) -> None:
    """One checkpoint into `folder`; `classes`: names in the place of those that the training data gave."""
    name, program = packed(path, classes)
    with tempfile.TemporaryDirectory() as temporary:
        trial = Path(temporary) / "trial.lconv"
        size = program.save(trial)
        check_restored(name, trial, from_checkpoint(path))
        target = folder / f"{name}.lconv"
        write_atomic(target, trial.read_bytes())
    alone = len(without_state(program).to_bytes())
    print(f"{target}  {size:,} bytes ({alone:,} without what PyTorch needs), top-1 {program.provenance['top1']:.4f}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=shipped.WEIGHTS, metavar="FOLDER")
    parser.add_argument("--classes", metavar="A,B,...", help="names, where the training data had numbers alone")
    options = parser.parse_args(arguments)
    classes = options.classes.split(",") if options.classes else None

    def run() -> None:
        for path in options.checkpoints:
            ship(path, options.out, classes)

    return guarded(run, debug=lambda: False)


if __name__ == "__main__":
    sys.exit(main())
