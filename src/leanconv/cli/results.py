"""`leanconv results`: what the recorded training runs add up to."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from leanconv.cli.errors import CommandError
from leanconv.cli.terminal import console
from leanconv.results import Difference, Run, Summary, differences, read, sides, summarise


def results(paths: list[Path], pairs: str | None, json: bool) -> None:
    """Print a line for each group of runs that differ in their seed alone and, with `pairs`, how far one arm is above
    another.
    """
    runs = [run for path in paths or [_recorded()] for run in read(path)]
    if not runs:
        raise CommandError(f"{', '.join(map(str, paths)) or _recorded()}: no runs are recorded here")
    summaries = summarise(runs)
    found = differences(runs, *_arms(pairs, runs)) if pairs is not None else None
    if json:
        shown = {"summaries": [summary.to_dict() for summary in summaries]}
        print(jsonlib.dumps(shown | ({"pairs": [d.to_dict() for d in found]} if found is not None else {}), indent=1))
        return
    out = console()
    out.print(_table(summaries))
    if found is not None:
        out.print()
        out.print(_pairs_table(found))


def _recorded() -> Path:
    """``results/`` here, or that of the checkout that leanconv is installed from."""
    for folder in (Path("results"), Path(__file__).parents[3] / "results"):
        if folder.is_dir():
            return folder
    raise CommandError(
        "there is no folder results/ here: name the CSV files or folders, for instance those that "
        "benchmarks/accuracy.py of a checkout writes"
    )


def _arms(text: str, runs: list[Run]) -> tuple[str, str]:
    """The two arms or models in ``ARM,ARM``; a name may have commas itself."""
    named = {name for run in runs for name in sides(run.model, run.arm)}
    halves = [(text[:i], text[i + 1 :]) for i, character in enumerate(text) if character == ","]
    for arm, baseline in halves:
        if arm.strip() in named and baseline.strip() in named:
            return arm.strip(), baseline.strip()
    arms = sorted({run.arm for run in runs})
    raise CommandError(f"--pairs {text}: expected two models or arms, ARM,ARM, out of {', '.join(map(repr, arms))}")


def _table(summaries: list[Summary]) -> Table:
    table = _columns("study", "model", "arm", "epochs", "split", "seeds", "top-1 %", "range", "OPs", "minutes")
    for s in summaries:
        span = f"{s.min:.2f} to {s.max:.2f}" if len(s.seeds) > 1 else ""
        top1 = _plus_minus(s.mean, s.deviation)
        ops = f"{s.ops:,}" if s.ops is not None else ""
        numbers = (str(s.epochs), s.split, str(len(s.seeds)), top1, span, ops, f"{s.minutes:.1f}")
        table.add_row(*map(escape, (s.study, s.model, s.arm)), *numbers)
    return table


def _pairs_table(found: list[Difference]) -> Table:
    table = _columns("study", "of", "to", "epochs", "split", "seeds", "points of top-1", "95 % interval of the mean")
    for d in found:
        span = f"{d.interval[0]:+.2f} to {d.interval[1]:+.2f}" if d.interval is not None else ""
        sides = (f"{d.model} ({d.arm})", f"{d.baseline_model} ({d.baseline})")
        numbers = (str(d.epochs), d.split, str(len(d.seeds)), _plus_minus(d.mean, d.deviation, "+"), span)
        table.add_row(*map(escape, (d.study, *sides)), *numbers)
    return table


def _columns(*names: str) -> Table:
    table = Table(box=None, padding=(0, 1))
    for name in names:
        text = name in ("study", "model", "arm", "split", "of", "to")
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    return table


def _plus_minus(mean: float, deviation: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
