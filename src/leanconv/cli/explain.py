"""`leanconv explain`: what the attention of a network's AW-convolutions does on pictures, drawn and in numbers."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from leanconv import shipped
from leanconv.cli.convert import check_source, check_target
from leanconv.cli.errors import CommandError
from leanconv.cli.terminal import console
from leanconv.extras import need
from leanconv.preprocess import Preprocessing, find_pictures, normalize, read_pictures
from leanconv.program import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from leanconv.report.attention import LayerAttention

BATCH = 16
SUFFIXES = (".svg", ".png")


def explain(text: str, pictures: list[Path], output: Path | None, layers: list[str], json: bool) -> None:
    """Measure, print a line a layer or JSON, and write the drawing to `output` if there is one. Raises CommandError."""
    need("`leanconv explain`", "train", "torch", "timm")
    if output is not None:
        need("`leanconv explain` with a picture to write", "demo", "matplotlib")
        check_target(output, output.suffix if output.suffix in SUFFIXES else " or ".join(SUFFIXES))
    if Path(text).suffix == ".lconv":
        raise CommandError(f"{text}: a packed file can't be looked into; name the checkpoint or the model")
    check_source(text)
    paths = find_pictures(pictures)
    from leanconv.networks import find_network
    from leanconv.report.attention import measure, spread
    from leanconv.report.attention_sheet import SHOWN, draw, render

    network = find_network(text)
    found = measure(network.model, _batches(paths, network.rules))
    chosen = _matching(found, layers)
    trained = Path(text).is_file() or text in shipped.weights()
    if output is not None:
        shown = read_pictures(paths[:SHOWN], network.rules)
        title = f"Weight attention of {text}" + ("" if trained else ", untrained")
        named = [(path.name, pixels) for path, pixels in zip(paths, shown, strict=False)]
        figure = draw(found, chosen if layers else spread(chosen), named, title)
        write_atomic(output, render(figure, output.suffix))
    if json:
        rows = [{"name": a.name, "channels": a.axis, "shape": a.mean.shape} | a.summary() for a in chosen]
        told = {"model": text, "trained": trained, "pictures": [str(path) for path in paths], "layers": rows}
        print(jsonlib.dumps(told, indent=1))
        return
    console().print(_table(chosen), highlight=False)
    if output is not None:
        print(f"wrote {output}")


def _batches(paths: Sequence[Path], rules: Preprocessing) -> Iterator[Tensor]:
    import torch

    for start in range(0, len(paths), BATCH):
        yield torch.from_numpy(normalize(read_pictures(paths[start : start + BATCH], rules), rules))


def _matching(layers: list[LayerAttention], patterns: list[str]) -> list[LayerAttention]:
    """Those whose name, or that of a module they are in, fits a pattern; all without patterns. Raises CommandError."""
    chosen = list(layers) if not patterns else []
    for layer in layers:
        if any(fnmatchcase(layer.name, form) for pattern in patterns for form in (pattern, f"{pattern}.*")):
            chosen.append(layer)
    if not chosen:
        names = ", ".join(layer.name for layer in layers)
        raise CommandError(f"--layers {' '.join(patterns)} fits no AW-convolution; there are {names}")
    return chosen


def _table(layers: list[LayerAttention]) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("attention A of", no_wrap=True)
    for column in ("mean", "min", "max", "deviation over\nchannels, taps", "deviation over\nthe pictures"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in layers:
        cells = ("" if value is None else f"{value:.4f}" for value in layer.summary().values())
        table.add_row(layer.name, *cells)
    return table
