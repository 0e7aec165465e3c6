"""Fills the accuracies of docs/sofar.md from results/cifar10_sofar.csv.

    python benchmarks/sofar_accuracy.py           rewrites the block between the two markers
    python benchmarks/sofar_accuracy.py --check   exits with 1 if the block is out of date

Each fractal network stands below its baseline, the network in whose terms its recipe is compared (BASELINES).
"""

from __future__ import annotations

import sys
from pathlib import Path

from leanconv.complexity import complexity
from leanconv.networks import from_name
from leanconv.program import write_atomic
from leanconv.results import Summary, differences, read, summarise
from leanconv.shipped import recipe_path
from leanconv.train.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "cifar10_sofar.csv"
BEGIN, END = "<!-- accuracy: begin (benchmarks/sofar_accuracy.py) -->", "<!-- accuracy: end -->"
BASELINES = {  # recipe in recipes/cifar10 -> that of its baseline
    "rf_c2d2_resnet16_cifar": "bireal_resnet20_cifar",
    "rf_c2d2_resnet16_cifar_long": "bireal_resnet20_cifar_long",
    "rf_c3d4_resnet28_cifar_long": "bireal_resnet20_cifar_long",
    "rf_c4d8_resnet37_cifar_w10_long": "bireal_resnet20_cifar_long",
    "rf_c2d2_resnet21_cifar_w60_long": "bireal_resnet18_cifar_long",
    "rf_c3d4_resnet21_cifar_long": "bireal_resnet18_cifar_long",
    "rf_c4d8_resnet37_cifar_long": "bireal_resnet18_cifar_long",
    "drf_c2d2_densenet51_cifar_k30_long": "binary_densenet51_cifar_k16_long",
}
HEADER = ("network", "arm", "epochs", "OPs without the stem", "with it", "top-1", "seeds", "above its baseline")


def recipe_of(summary: Summary) -> str:
    """The recipe that an arm was trained with: the words of the arm but the first and those of `--set`."""
    return "_".join([summary.model, *(word for word in summary.arm.split()[1:] if "=" not in word)])


def operations(recipe: str) -> str:
    """Without the stem; in thousands or millions of multiply-adds."""
    trained = load_recipe(recipe_path(f"cifar10/{recipe}"))
    network = from_name(trained.model, **trained.model_args)
    return thousands(complexity(network.compile(verify=False)[0])["ops_without_stem"])


def thousands(number: float) -> str:
    return f"{number / 1e3:,.0f} k"


def plus_minus(mean: float, deviation: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def row(summary: Summary, summaries: list[Summary]) -> list[str]:
    recipe = recipe_of(summary)
    baseline = BASELINES.get(recipe)
    above = ""
    for other in summaries:
        comparable = (other.epochs, other.split) == (summary.epochs, summary.split) and "=" not in other.arm
        if comparable and recipe_of(other) == baseline:
            names = (f"{s.model} ({s.arm})" for s in (summary, other))
            runs = [r for r in read(RESULTS) if (r.epochs, r.split) == (summary.epochs, summary.split)]
            (found,) = differences(runs, *names)
            above = f"{plus_minus(found.mean, found.deviation, '+')} ({len(found.seeds)} pairs)"
    return [
        f"`{summary.model}`",
        summary.arm,
        str(summary.epochs),
        operations(recipe),
        thousands(summary.ops) if summary.ops is not None else "",
        f"{plus_minus(summary.mean, summary.deviation)} %",
        str(len(summary.seeds)),
        above,
    ]


def table() -> str:
    summaries = sorted(
        summarise(read(RESULTS)),
        key=lambda s: (s.epochs, BASELINES.get(recipe_of(s), recipe_of(s)), recipe_of(s) in BASELINES),
    )
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|" + "---:|" * (len(HEADER) - 2)]
    lines += ["| " + " | ".join(row(summary, summaries)) + " |" for summary in summaries]
    return "\n".join(lines)


def main() -> None:
    page = ROOT / "docs" / "sofar.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} lacks the markers {BEGIN} and {END}")
    text = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" not in sys.argv[1:]:
        write_atomic(page, text.encode())
    elif page.read_text() != text:
        raise SystemExit(f"{page} is out of date: python benchmarks/sofar_accuracy.py")


if __name__ == "__main__":
    main()
