"""`leanconv eval MODEL.lconv --against CHECKPOINT`: do engine and PyTorch give the same classes, if not, why."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.cli.errors import CommandError
from leanconv.extras import need
from leanconv.shipped import packed_path

EXPLAINED = 100  # pictures at most whose difference is traced


def agreement(text: Path, checkpoint: Path, spec: str, threads: int | None, json: bool) -> None:
    """Compare a packed file with the checkpoint that it was compiled from, on the test split of a data set."""
    need("`leanconv eval --against`", "train", "torch", "timm")
    packed = packed_path(text)
    if packed.suffix != ".lconv":
        raise CommandError(f"{packed}: --against compares a packed file (.lconv) with its checkpoint")
    from leanconv.program import Program

    if Program.load(packed).provenance.get("real_layers") == "int8":
        raise CommandError(
            f"{packed}: has int8 layers, whose values are not PyTorch's; compare their accuracy with `leanconv eval`"
        )
    import torch

    from leanconv import engine
    from leanconv.compiler.differences import explain_differences
    from leanconv.models.packed_state import without_state
    from leanconv.networks import from_checkpoint
    from leanconv.preprocess import normalize
    from leanconv.train.data import load_data

    network = from_checkpoint(checkpoint)
    program = without_state(Program.load(packed))
    again, _ = network.compile(verify=False)
    if [(op.kind, op.name) for op in program.ops] != [(op.kind, op.name) for op in again.ops] or any(
        not np.array_equal(again.tensors[name], tensor) for name, tensor in program.tensors.items()
    ):
        raise CommandError(f"{packed} was not compiled from {checkpoint}: their weights differ")
    model = engine.load(packed, threads=threads)
    data = load_data(spec, network.rules, train=False)
    ours, theirs, labels, different = [], [], [], []
    for images, right in data.test.pictures(64):
        logits = np.asarray(model(images.numpy()))
        x = torch.from_numpy(normalize(images.numpy(), network.rules))
        with torch.inference_mode():
            expected = network.model(x).numpy()
        ours.append(logits.argmax(1))
        theirs.append(expected.argmax(1))
        labels.append(right.numpy())
        different += [x[i] for i in np.flatnonzero(ours[-1] != theirs[-1])]
    engine_class, torch_class, label = (np.concatenate(parts) for parts in (ours, theirs, labels))
    traced = explain_differences(network.model, network.example(), different[:EXPLAINED])
    result: dict[str, Any] = {
        "pictures": len(label),
        "same_class": int((engine_class == torch_class).sum()),
        "engine_top1": float((engine_class == label).mean()),
        "torch_top1": float((torch_class == label).mean()),
        "differences": [vars(difference) | {"explained": difference.explained} for difference in traced],
    }
    if json:
        print(jsonlib.dumps(result))
        return
    print(
        f"{packed}  the engine gives PyTorch's class on {result['same_class']} of {result['pictures']} pictures of "
        f"{spec}; top-1 {result['engine_top1']:.4f}, PyTorch {result['torch_top1']:.4f}"
    )
    for difference in traced:
        if difference.layer is None:
            print("  a picture of equal signs: its two largest outputs differ by rounding alone")
        else:
            print(
                f"  first difference at {difference.layer}: {difference.signs} sign(s), at most "
                f"{difference.distance:.1e} from the threshold (values there: {difference.scale:.1e})"
                + ("" if difference.explained else ": MORE THAN ROUNDING")
            )
