"""`leanconv info`: what a network costs, counted on the compiled program."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from leanconv.cli.convert import check_source
from leanconv.cli.terminal import console
from leanconv.complexity import complexity
from leanconv.extras import need

if TYPE_CHECKING:
    from leanconv.program import Program

KEYS = (
    "parameters_binary",
    "parameters_real",
    "macs_binary",
    "macs_real",
    "ops",
    "ops_without_stem",
    "depth",
    "bytes_memory",
    "bytes_packed",
)


def info(text: str, json: bool, size: int | None) -> None:
    """Print the counts, as JSON the nine keys alone."""
    program, packed_bytes = _program(text, size)
    counts = complexity(program, (size, size) if size else None)
    if packed_bytes is not None:
        counts["bytes_packed"] = packed_bytes
    if json:
        print(jsonlib.dumps({key: counts[key] for key in KEYS}))
    else:
        _show(text, program, counts)


def _program(text: str, size: int | None) -> tuple[Program, int | None]:
    """The compiled network, and the size of its file where there is one."""
    from leanconv.program import Program

    path = Path(text)
    if path.suffix == ".lconv":
        return Program.load(path), path.stat().st_size
    need(f"`leanconv info {text}` (anything but a .lconv file)", "train", "torch", "timm")
    check_source(text)
    from leanconv.networks import find_network

    return find_network(text).compile(size, verify=False)[0], None


def _show(text: str, program: Program, counts: dict[str, Any]) -> None:
    out = console()
    layers = Table(box=None, padding=(0, 1))
    for column in ("layer", "kind", "output", "binary MACs", "float MACs", "binary weights", "float weights"):
        layers.add_column(column, justify="left" if column in ("layer", "kind", "output") else "right", no_wrap=True)
    for row in counts["layers"]:
        numbers = (row[key] for key in ("macs_binary", "macs_real", "parameters_binary", "parameters_real"))
        cells = (f"{n:,}" if n else "" for n in numbers)
        layers.add_row(row["name"], row["kind"], "x".join(map(str, row["output"])), *cells)
    out.print(layers)
    height, width = counts["size"]
    rows = [
        ("network", (program.provenance or {}).get("model") or text),
        ("input", f"{height}x{width}, {program.inputs[0].channels} channel(s)"),
        ("classes", len(program.classes) if program.classes else None),
        ("binary parameters", f"{counts['parameters_binary']:,}"),
        ("float parameters", f"{counts['parameters_real']:,}"),
        ("binary MACs", f"{counts['macs_binary']:,}"),
        ("float MACs", f"{counts['macs_real']:,}"),
        ("OPs (float + binary / 64)", f"{counts['ops']:,.0f}"),
        ("OPs without the stem", f"{counts['ops_without_stem']:,.0f}"),
        ("depth", f"{counts['depth']} convolutions and dense layers"),
        ("memory of the weights", f"{counts['bytes_memory']:,} bytes"),
        ("packed file", f"{counts['bytes_packed']:,} bytes"),
        ("trained top-1", (program.provenance or {}).get("top1")),
    ]
    for name, value in rows:
        if value is not None:
            out.print(f"{name:<26} {value}", highlight=False, soft_wrap=True)
