"""Trains recipes over seeds and records one row a run in a CSV file, in the layout of results/.

    python benchmarks/accuracy.py results/digits.csv digits/bireal_digits digits/resnet_digits --seeds 0 1 2

Rows are appended as runs finish; a run (recipe, seed) that the file already holds is not repeated, so a study that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from leanconv.bench.machine import describe
from leanconv.complexity import complexity
from leanconv.networks import from_checkpoint
from leanconv.shipped import recipe_path
from leanconv.train.loop import train
from leanconv.train.recipe import load_recipe

COLUMNS = ["study", "model", "arm", "seed", "top1_percent", "ops", "epochs", "split", "machine", "commit", "minutes"]


def commit() -> str:
    """The revision that is measured, marked if the tree differs from it."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


def known(path: Path) -> set[tuple[str, int]]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(row["model"], int(row["seed"])) for row in csv.DictReader(file)}


def measure(recipe_name: str, seed: int, study: str) -> dict[str, object]:
    """One training, counted by the compiled network."""
    recipe = load_recipe(recipe_path(recipe_name), [f"seed={seed}"])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe, Path(folder), progress=False)
        counts = complexity(from_checkpoint(result.checkpoint).compile()[0])
    return {
        "study": study,
        "model": recipe.model,
        "arm": "1-bit" if counts["parameters_binary"] else "float",
        "seed": seed,
        "top1_percent": f"{100 * result.top1:.2f}",
        "ops": f"{counts['ops']:.0f}",
        "epochs": recipe.epochs,
        "split": result.split,
        "machine": describe()["cpu"],
        "commit": commit(),
        "minutes": f"{(time.perf_counter() - started) / 60:.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = known(options.csv)
    for seed in options.seeds:
        for name in options.recipes:
            if (load_recipe(recipe_path(name)).model, seed) in done:
                continue
            row = measure(name, seed, options.csv.stem)
            new = not options.csv.exists()
            with options.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(
                ", ".join(f"{key} {row[key]}" for key in ("model", "arm", "seed", "top1_percent", "minutes")),
                flush=True,
            )


if __name__ == "__main__":
    main()
