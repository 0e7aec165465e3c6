"""The whole road on scikit-learn's digits: train float and 1-bit twins, compile, run, compare, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanconv import __version__, engine
from leanconv.bench import Result, parse_rivals, run_bench
from leanconv.bench.machine import describe
from leanconv.program import write_atomic
from leanconv.report import DemoReport, Picture, render
from leanconv.shipped import recipe_path

if TYPE_CHECKING:
    from leanconv.networks import Network
    from leanconv.train.data import Split

RECIPES = {"float": "digits/resnet_digits", "1-bit": "digits/bireal_digits"}
SHOWN = 20  # pictures in the report, and mistakes at most


@dataclass
class Trained:
    """One trained network with its checkpoint and its history."""

    network: Network
    checkpoint: Path
    top1: float
    history: list[dict[str, float]]


@dataclass
class Answers:
    """What the engine said about every test picture."""

    classes: np.ndarray
    probabilities: np.ndarray
    top1: float
    agreement: float


def run_demo(out: Path, tell: Callable[[str], None] = print) -> dict[str, float]:
    """Write model.lconv, report.html, summary.json, checkpoints and some pictures to `out`; return the summary.

    The summary holds fractions (`float_top1 binary_top1 engine_top1 agreement`), bytes, milliseconds and `seconds`.
    """
    from leanconv.complexity import complexity
    from leanconv.train.data import Split, load_data

    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    trained = {kind: _train(kind, out, tell) for kind in RECIPES}
    binary = trained["1-bit"].network
    tell("compiling the 1-bit network")
    program, _ = binary.compile()
    packed = out / "model.lconv"
    engine_bytes = program.save(packed)
    data = load_data("digits")
    assert isinstance(data.test, Split)
    tell("running the engine over the test pictures")
    answers = _ask_engine(packed, binary, data.test)
    _write_pictures(out / "pictures", data.test, data.classes)
    tell("measuring latency beside torch and onnxruntime")
    measured = run_bench(packed, parse_rivals("torch,onnxruntime"), twin=trained["float"].network)
    summary = {
        "float_top1": trained["float"].top1,
        "binary_top1": trained["1-bit"].top1,
        "engine_top1": answers.top1,
        "agreement": answers.agreement,
        "float_bytes": trained["float"].checkpoint.stat().st_size,
        "engine_bytes": engine_bytes,
        "engine_ms": measured.engine.ms,
        "torch_ms": measured.rivals["torch"].ms,
        "onnxruntime_ms": measured.rivals["onnxruntime"].ms,
        "seconds": round(time.perf_counter() - started, 1),
    }
    report = _report(summary, trained, answers, data.test, data.classes, complexity(program), measured)
    write_atomic(out / "report.html", render(report).encode())
    write_atomic(out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    for line in _lines(summary, out):
        tell(line)
    return summary


def _train(kind: str, out: Path, tell: Callable[[str], None]) -> Trained:
    import torch

    from leanconv.networks import from_checkpoint
    from leanconv.train.loop import train
    from leanconv.train.recipe import load_recipe

    recipe = load_recipe(recipe_path(RECIPES[kind]))
    tell(f"training the {kind} network ({recipe.model}, {recipe.epochs} epochs)")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small gain little from more, and lose much where other work takes a core
    try:
        result = train(recipe, out / kind, overwrite=True)
    finally:
        torch.set_num_threads(threads)
    return Trained(from_checkpoint(result.checkpoint), result.checkpoint, result.top1, result.history)


def _ask_engine(packed: Path, network: Network, test: Split) -> Answers:
    """Every test picture through the packed file, beside torch on the same pictures."""
    import torch

    from leanconv.preprocess import normalize

    images = np.ascontiguousarray(test.images.numpy())
    logits = np.asarray(engine.load(packed)(images))
    with torch.inference_mode():
        expected = network.model(torch.from_numpy(normalize(images, network.rules))).numpy()
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    classes = logits.argmax(axis=1)
    return Answers(
        classes=classes,
        probabilities=(shifted / shifted.sum(axis=1, keepdims=True))[np.arange(len(classes)), classes],
        top1=float((classes == test.labels.numpy()).mean()),
        agreement=float((classes == expected.argmax(axis=1)).mean()),
    )


def _write_pictures(folder: Path, test: Split, classes: list[str]) -> None:
    """One test picture of each class as PNG, to try `leanconv run` on."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    labels = test.labels.numpy()
    for index, name in enumerate(classes):
        first = int(np.flatnonzero(labels == index)[0])
        Image.fromarray(test.images[first, :, :, 0].numpy()).save(folder / f"{name}.png")


def _report(
    summary: dict[str, float],
    trained: dict[str, Trained],
    answers: Answers,
    test: Split,
    classes: list[str],
    counts: dict[str, Any],
    measured: Result,
) -> DemoReport:
    images, labels = test.images.numpy(), test.labels.numpy()

    def picture(i: int) -> Picture:
        said = int(answers.classes[i])
        return Picture(images[i], classes[labels[i]], classes[said], float(answers.probabilities[i]))

    wrong = np.flatnonzero(answers.classes != labels)
    by_class = [np.flatnonzero((labels == c) & (answers.classes == labels)) for c in range(len(classes))]
    right = [int(group[n]) for n in range(SHOWN // len(classes)) for group in by_class if len(group) > n]
    return DemoReport(
        summary=summary,
        curves={
            kind: [(int(row["epoch"]), row["train_loss"], row["top1"]) for row in one.history]
            for kind, one in trained.items()
        },
        pictures=[picture(i) for i in right],
        mistakes=[picture(int(i)) for i in wrong[:SHOWN]],
        test_pictures=len(labels),
        names={kind: str(one.network.name) for kind, one in trained.items()},
        counts=counts,
        machine=describe(),
        versions={
            "leanconv": __version__,
            "torch": str(measured.about["torch"]["version"]),
            "onnxruntime": str(measured.about["onnxruntime"]["version"]),
        },
    )


def _lines(s: dict[str, float], out: Path) -> list[str]:
    """The summary for the terminal."""
    return [
        f"top-1        float {s['float_top1']:.4f}   1-bit {s['binary_top1']:.4f}   engine {s['engine_top1']:.4f}   "
        f"(engine and torch agree on {s['agreement']:.1%})",
        f"bytes        float {s['float_bytes']:,.0f}   packed {s['engine_bytes']:,.0f}   "
        f"({s['float_bytes'] / s['engine_bytes']:.1f} times smaller)",
        f"milliseconds engine {s['engine_ms']:.4f}   torch {s['torch_ms']:.4f}   "
        f"onnxruntime {s['onnxruntime_ms']:.4f}   (float twin in torch and onnxruntime; batch 1, one thread)",
        f"wrote {out / 'report.html'}, {out / 'summary.json'}, {out / 'model.lconv'} in {s['seconds']:.0f} s",
        f"try: leanconv run {out / 'model.lconv'} {out / 'pictures'}",
    ]
