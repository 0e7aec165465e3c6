"""Trains recipes over seeds and records one row a run in a CSV file, in the layout of results/ (leanconv.results).

    python benchmarks/accuracy.py results/digits.csv digits/bireal_digits digits/resnet_digits --seeds 0 1 2

The study is the name of the CSV file. The arm is "1-bit" or "float", then what the name of the recipe adds to that of
its model, then each `--set` that makes it another experiment. Rows are appended as runs finish; a run that the file
already holds (same study, model, arm, seed, epochs and split) is not repeated. With `--out FOLDER` each run keeps a
folder of its own, FOLDER/<recipe>-<seed>, and one that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from leanconv.bench.machine import describe
from leanconv.cli.errors import guarded
from leanconv.compiler import CompileError
from leanconv.complexity import complexity
from leanconv.networks import from_checkpoint
from leanconv.results import ResultsError, Run, append, read
from leanconv.shipped import recipe_path
from leanconv.train.loop import train
from leanconv.train.optimizers import binary_parameters
from leanconv.train.recipe import Recipe, load_recipe
from leanconv.train.setup import create_model

ROOT = Path(__file__).resolve().parents[1]
SAME_EXPERIMENT = {
    "seed",
    "epochs",
    "validation",
    "data",
    "workers",
    "log_steps",
    "save_minutes",
    "expect",
    "published",
}


def commit() -> str:
    """The revision that is measured, marked if the tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else describe()["cpu"]


def arm_of(stem: str, recipe: Recipe, overrides: list[str]) -> str:
    """What tells this way of training from others of the same model.

    >>> from leanconv.train.recipe import make_recipe
    >>> recipe = make_recipe({"model": "bireal_digits", "data": "digits", "epochs": 1, "learning_rate": 0.1})
    >>> arm_of("bireal_digits_wide", recipe, ["epochs=2", "optimizer=sgd"])
    '1-bit wide optimizer=sgd'
    """
    model = create_model(recipe.model_copy(update={"pretrained": False, "start_from": None}), dict(recipe.model_args))
    parts = ["1-bit" if binary_parameters(model) else "float"]
    parts.append(stem.removeprefix(recipe.model).strip("_-"))
    parts += [text for text in overrides if text.partition("=")[0].partition(".")[0] not in SAME_EXPERIMENT]
    return " ".join(filter(None, parts))


def ops(checkpoint: Path) -> int | None:
    """What one picture costs, counted on the compiled network; None where it cannot be compiled."""
    try:
        return round(complexity(from_checkpoint(checkpoint).compile(verify=False)[0])["ops"])
    except CompileError as error:
        print(f"{checkpoint}: not counted: {error}", file=sys.stderr)
        return None


def measure(recipe: Recipe, study: str, arm: str, folder: Path) -> Run:
    """One training in `folder`, or the rest of one."""
    result = train(recipe, folder, progress=sys.stderr.isatty(), resume=(folder / "state.safetensors").exists())
    return Run(
        study=study,
        model=recipe.model,
        arm=arm,
        seed=recipe.seed,
        top1_percent=round(100 * result.top1, 2),
        ops=ops(result.checkpoint),
        epochs=len(result.history),
        split=result.split,
        machine=machine(),
        commit=commit(),
        minutes=round(result.seconds / 60, 2),
    )


def is_done(path: Path, recipe: Recipe, arm: str) -> bool:
    """Whether the file holds this run."""
    split = "validation" if recipe.validation else "test"
    epochs = recipe.epochs + (recipe.real_weights_first.epochs if recipe.real_weights_first else 0)
    key = (path.stem, recipe.model, arm, recipe.seed, epochs, split)
    return path.exists() and any(run.key == key for run in read(path))


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    if any(text.partition("=")[0].strip() == "seed" for text in options.overrides):
        raise ResultsError("--set seed=...: name the seeds with --seeds")
    for seed in options.seeds:
        for name in options.recipes:
            path = recipe_path(name).resolve()
            recipe = load_recipe(path, [*options.overrides, f"seed={seed}"])
            arm = arm_of(path.stem, recipe, options.overrides)
            if is_done(options.csv, recipe, arm):
                continue
            with tempfile.TemporaryDirectory() as temporary:
                folder = options.out / f"{path.parent.name}/{path.stem}-{seed}" if options.out else Path(temporary)
                row = measure(recipe, options.csv.stem, arm, folder)
            append(options.csv, row)
            print(f"{row.model} ({row.arm}), seed {seed}: {row.top1_percent:.2f} %, {row.minutes} minutes", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the runs' folders and go on with stopped ones")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    return guarded(lambda: run(options), debug=lambda: False)


if __name__ == "__main__":
    sys.exit(main())
