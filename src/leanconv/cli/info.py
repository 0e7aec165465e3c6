"""`leanconv info`: what a network costs, counted on the compiled program, and a drawing of its fractal unit."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from leanconv.cli.convert import check_source, check_target
from leanconv.cli.errors import CommandError
from leanconv.cli.terminal import console
from leanconv.complexity import complexity
from leanconv.extras import need

if TYPE_CHECKING:
    from torch import nn

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
    "size",
    "stem",
    "layers",
)
WIDE = 200  # columns that the table may take where no terminal limits it


@dataclass
class Subject:
    """The compiled network; the size of its file, or torch's model, where there is one."""

    program: Program
    file_bytes: int | None = None
    model: nn.Module | None = None


def info(text: str, json: bool, size: int | None) -> None:
    """Print the counts: layers and totals, or all of it as JSON."""
    subject = _subject(text, size)
    counts = complexity(subject.program, (size, size) if size else None)
    if subject.file_bytes is not None:
        counts["bytes_packed"] = subject.file_bytes
    convs = convs_per_unit(subject.model) if subject.model is not None else None
    if json:
        found = {key: counts[key] for key in KEYS}
        print(jsonlib.dumps(found if convs is None else {"convs_per_unit": convs} | found))
    else:
        _show_layers(counts["layers"])
        _show_totals(text, subject.program, counts, convs)


def draw(text: str, target: Path) -> None:
    """Write the drawing of one fractal unit of a model as SVG. Raises CommandError."""
    from leanconv.program import write_atomic

    check_target(target, ".svg")
    svg, about = drawing(text)
    write_atomic(target, svg.encode())
    print(f"{target}  {about}")


def drawing(text: str) -> tuple[str, str]:
    """SVG of a model's first fractal unit (a dense network's second), and a line about it. Raises CommandError."""
    if Path(text).suffix == ".lconv":
        raise CommandError(f"{text}: a packed file keeps no fractal units; draw the checkpoint or the model's name")
    need(f"`leanconv info {text} --draw`", "train", "torch", "timm")
    check_source(text)
    from leanconv.models.dense import DenseStep
    from leanconv.networks import find_network
    from leanconv.nn.fractal import FractalUnit
    from leanconv.report.drawing import draw_unit

    model = find_network(text).model
    units = [(name, module) for name, module in model.named_modules() if isinstance(module, FractalUnit)]
    if not units:
        raise CommandError(f"{text} has no fractal unit to draw; rf_c4d8_resnet37 is a model that has")
    name, unit = units[0]
    concat = isinstance(model.get_submodule(name.rpartition(".")[0]), DenseStep)
    if concat and len(units) > 1:  # in the first dense unit, all widths may be the same
        name, unit = units[1]
    about = f"{name}: {unit.columns} columns, {len(unit.layers)} layers, depth {unit.depth}"
    return draw_unit(unit, concat=concat), about


def convs_per_unit(model: nn.Module) -> int | None:
    """Layers of each fractal unit of a torch model (of the largest, should they differ), None where it has none."""
    from leanconv.nn.fractal import FractalUnit

    return max((len(module.layers) for module in model.modules() if isinstance(module, FractalUnit)), default=None)


def _subject(text: str, size: int | None) -> Subject:
    from leanconv.program import Program

    path = Path(text)
    if path.suffix == ".lconv":
        return Subject(Program.load(path), path.stat().st_size)
    need(f"`leanconv info {text}` (anything but a .lconv file)", "train", "torch", "timm")
    check_source(text)
    from leanconv.networks import find_network

    network = find_network(text)
    return Subject(network.compile(size, verify=False)[0], model=network.model)


def short(count: float) -> str:
    """A count in four digits, empty for none.

    >>> [short(n) for n in (0, 999, 15129, 47444544, 2917839456)]
    ['', '999', '15.13k', '47.44M', '2.918G']
    """
    for unit in ("", "k", "M", "G", "T"):
        if count < 999.95 or unit == "T":
            break
        count /= 1000
    return f"{count:.4g}{unit}" if count else ""


def _show_layers(rows: list[dict[str, Any]]) -> None:
    out = console()
    if not out.is_terminal:
        out.width = WIDE
    table = Table(box=None, padding=(0, 1))
    table.add_column("layer", overflow="fold")
    for column in ("kind", "input", "output"):
        table.add_column(column, no_wrap=True)
    numbers = {
        "1-bit\nweights": "parameters_binary",
        "32-bit\nparameters": "parameters_real",
        "binary\nMACs": "macs_binary",
        "float\nMACs": "macs_real",
        "\nOPs": "ops",
        "bytes in\nmemory": "bytes_memory",
        "bytes in\nthe file": "bytes_packed",
    }
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shapes = ("x".join(map(str, row[key])) for key in ("input", "output"))
        table.add_row(row["name"], row["kind"], *shapes, *(short(row[key]) for key in numbers.values()))
    out.print(table, highlight=False)
    out.print()


def _show_totals(text: str, program: Program, counts: dict[str, Any], convs: int | None) -> None:
    out = console()
    stem = next((row for row in counts["layers"] if row["name"] == counts["stem"]), None)
    totals = Table(box=None, padding=(0, 1))
    for column in ("totals", "", f"without the stem ({counts['stem']})" if stem else ""):
        totals.add_column(column, justify="right" if column != "totals" else "left", no_wrap=True)
    for name, key in (
        ("1-bit weights", "parameters_binary"),
        ("32-bit parameters", "parameters_real"),
        ("binary MACs", "macs_binary"),
        ("float MACs", "macs_real"),
        ("OPs (float + binary / 64)", "ops"),
        ("bytes in memory", "bytes_memory"),
        ("bytes of the packed file", "bytes_packed"),
    ):
        totals.add_row(name, f"{counts[key]:,.0f}", f"{counts[key] - stem[key]:,.0f}" if stem else "")
    out.print(totals, highlight=False)
    height, width = counts["size"]
    provenance = program.provenance or {}
    rows = [
        ("network", provenance.get("model") or text),
        ("input", f"{height}x{width}, {program.inputs[0].channels} channel(s)"),
        ("classes", len(program.classes) if program.classes else None),
        ("depth", f"{counts['depth']} convolutions and dense layers on the longest path"),
        ("fractal unit", f"{convs} convolutions" if convs is not None else None),
        ("trained top-1", provenance.get("top1")),
    ]
    for name, value in rows:
        if value is not None:
            out.print(f" {name:<25} {value}", highlight=False, soft_wrap=True)
