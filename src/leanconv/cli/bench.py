"""`leanconv bench`: the table of latencies, and a bar a layer."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from leanconv.bench import Result, parse_rivals, run_bench
from leanconv.cli.terminal import console, progress
from leanconv.program import write_atomic


def bench(
    model: str,
    rivals: str,
    threads: int,
    size: int | None,
    batch: int,
    rounds: int,
    json: Path | None,
    profile: bool,
    int8: bool = False,
) -> None:
    """Measure, print, and write the JSON file."""
    to_stdout = json is not None and str(json) == "-"
    if json is not None and not to_stdout:
        check_writable(json)
    with progress() as tell:
        result = run_bench(
            model,
            parse_rivals(rivals),
            threads=threads,
            size=size,
            batch=batch,
            rounds=rounds,
            profile=profile,
            int8=int8,
            tell=tell,
        )
    text = jsonlib.dumps(result.to_dict(), indent=1) + "\n"
    if to_stdout:
        sys.stdout.write(text)
        return
    show(result, console())
    if json is not None:
        write_atomic(json, text.encode())
        print(f"wrote {json}")


def check_writable(path: Path) -> None:
    """Refuse, before the work starts, a file whose folder is missing. Raises FileNotFoundError."""
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "no such folder", str(path.parent))


def show(result: Result, out: Console) -> None:
    """The table for people."""
    height, width = result.size
    title = f"{result.model}  {height}x{width}, batch {result.batch}, {result.threads} thread(s)"
    table = Table(title=title, title_justify="left")
    for column, justify in (("engine", "left"), ("network", "left"), ("ms", "right"), ("times longer", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_row("leanconv", "packed", f"{result.engine.ms:.3f}", "1.00")
    for name, timing in result.rivals.items():
        engine, _, binary = name.partition(":")
        network = "the same binary network" if binary else "float twin"
        if engine.endswith("-int8"):
            network += " in int8"
        table.add_row(name, network, f"{timing.ms:.3f}", f"{result.ratios[name]:.2f}")
    out.print(table)
    out.print(f"packed file {result.engine_bytes:,} bytes; instruction set {result.about['leanconv']['isa']}")
    out.print(f"on {result.machine['cpu']}, {result.machine['cores']} cores", highlight=False)
    if result.other_load is not None and result.other_load > 0.1:
        out.print(f"[yellow]other processes used {result.other_load:.0%} of the machine meanwhile[/yellow]")
    if result.profile:
        show_profile(result.profile, out)


def show_profile(rows: list[dict[str, Any]], out: Console) -> None:
    """A bar a layer, as long as its time; the full part is what it would take at this machine's limit."""
    total = sum(row["ms"] for row in rows) or 1.0
    longest = max((row["ms"] for row in rows), default=0.0) or 1.0
    table = Table(title="time by layer (one run at a time, medians)", title_justify="left", box=None, padding=(0, 1))
    for column in ("layer", "kind", "ms", "%", "of limit", "limit", ""):
        right = column in ("ms", "%", "of limit")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        share = "" if row["share"] is None else f"{row['share']:.0%}"
        cells = [row["name"], row["kind"], f"{row['ms']:.4f}", f"{100 * row['ms'] / total:.1f}", share]
        table.add_row(*cells, row["bound"] or "", bar(row["ms"] / longest, row["share"] or 0.0))
    out.print(table)
    limits = sum(row["limit_ms"] or 0.0 for row in rows)
    out.print(
        f"all layers {total:.3f} ms; at the limits of this machine, measured in this run, {limits:.3f} ms "
        f"({limits / total:.0%}). limit: arithmetic of that kind, or reading from that level of memory",
        highlight=False,
        soft_wrap=True,
    )


def bar(part: float, share: float, width: int = 30) -> str:
    """`part` of `width` cells, of which `share` full.

    >>> bar(0.5, 0.4, 10), bar(0.001, 0.4), bar(0.1, 1.2, 10)
    ('██░░░', '▏', '█')
    """
    length = round(width * part)
    full = min(length, round(length * share))
    return "█" * full + "░" * (length - full) or "▏"
