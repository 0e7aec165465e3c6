"""Fills the accuracies of docs/drop-in.md from results/cifar10_aw.csv.

    python benchmarks/drop_in_accuracy.py           rewrites the block between the two markers
    python benchmarks/drop_in_accuracy.py --check   exits with 1 if the block is out of date

Each network with attention stands beside the plain one of the same recipe: the difference is taken seed by seed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from leanconv.program import write_atomic
from leanconv.results import Run, Summary, differences, read, summarise

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "cifar10_aw.csv"
BEGIN, END = "<!-- accuracy: begin (benchmarks/drop_in_accuracy.py) -->", "<!-- accuracy: end -->"
HEADER = ("network", "arm", "epochs", "multiply-adds", "top-1", "seeds", "above the plain network")


def plain(model: str) -> str:
    """The network without attention.

    >>> plain("aw_se_resnet20_cifar"), plain("reaf_resnet20_cifar_control"), plain("resnet20_cifar")
    ('resnet20_cifar', 'resnet20_cifar', 'resnet20_cifar')
    """
    return re.sub(r"^((aw|se|cbam|bam|eca|reaf)_)*", "", model).removesuffix("_control")


def plus_minus(mean: float, deviation: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def row(summary: Summary, runs: list[Run]) -> list[str]:
    above = ""
    baseline = plain(summary.model)
    comparable = [r for r in runs if (r.arm, r.epochs, r.split) == (summary.arm, summary.epochs, summary.split)]
    if summary.model != baseline and any(r.model == baseline for r in comparable):
        names = (f"{model} ({summary.arm})" for model in (summary.model, baseline))
        (found,) = differences(comparable, *names)
        above = f"{plus_minus(found.mean, found.deviation, '+')} ({len(found.seeds)} pairs)"
    return [
        f"`{summary.model}`",
        summary.arm,
        str(summary.epochs),
        f"{summary.ops / 1e6:.2f} M" if summary.ops is not None else "",
        f"{plus_minus(summary.mean, summary.deviation)} %",
        str(len(summary.seeds)),
        above,
    ]


def table() -> str:
    runs = read(RESULTS)
    summaries = sorted(summarise(runs), key=lambda s: (s.epochs, plain(s.model), s.model != plain(s.model), s.model))
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|" + "---:|" * (len(HEADER) - 2)]
    lines += ["| " + " | ".join(row(summary, runs)) + " |" for summary in summaries]
    return "\n".join(lines)


def main() -> None:
    page = ROOT / "docs" / "drop-in.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} lacks the markers {BEGIN} and {END}")
    text = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" not in sys.argv[1:]:
        write_atomic(page, text.encode())
    elif page.read_text() != text:
        raise SystemExit(f"{page} is out of date: python benchmarks/drop_in_accuracy.py")


if __name__ == "__main__":
    main()
