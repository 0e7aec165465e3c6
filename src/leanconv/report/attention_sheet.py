"""The attention of AW-convolutions drawn with matplotlib: the pictures, all layers at a glance, and some in detail."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leanconv.report.attention import LayerAttention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 8  # pictures that get a thumbnail and a curve of their own
LABELS = 12  # layers named below the overview: more would overlap
COLOURS = ("#0b6bcb", "#c2570c", "#1a7f4b", "#8e4ec6", "#a67700", "#d6409f", "#00808a", "#62656d")
INK, QUIET, RULE = "#1c1d20", "#62656d", "#e3e3df"
LEAST_SPAN = 0.01  # of a colour scale: smaller differences are to look small

# Inches. Columns: left edge and width.
WIDTH, LEFT, RIGHT = 14.0, 0.55, 13.5
THUMBNAIL, PANEL, ROW_HEIGHT, MAP = 1.0, 1.35, 1.95, 1.0
TAPS, CHANNELS, CURVES, CHANGES = (0.55, MAP), (2.1, 3.35), (6.75, 2.3), (9.65, 3.35)


def draw(
    layers: Sequence[LayerAttention],
    rows: Sequence[LayerAttention],
    pictures: Sequence[tuple[str, np.ndarray]],
    title: str,
) -> Figure:
    """A sheet: the pictures, an overview of all `layers`, and for each of `rows` its maps.

    Args: pictures: name and pixels (uint8, [H, W, C]), in the order of the attention's; the first eight are enough.
    """
    import matplotlib
    from matplotlib.figure import Figure

    head = 0.75 + THUMBNAIL + 0.75
    overview = PANEL + 1.0
    height = head + overview + 0.35 + ROW_HEIGHT * len(rows)
    with matplotlib.rc_context(_STYLE):
        sheet = _Sheet(Figure(figsize=(WIDTH, height)), height)
        sheet.text(LEFT, 0.35, title, size=14, weight="bold")
        count = len(layers[0].values)
        _thumbnails(sheet, pictures[:SHOWN], count)
        _overview(sheet, head, layers, rows)
        curves = np.concatenate([layer.values.mean((2, 3)).ravel() for layer in rows])
        limits = _limits(curves, margin=0.08)
        changes = max([LEAST_SPAN, *(float(row.change.max()) for row in rows if row.change is not None)])
        for i, layer in enumerate(rows):
            _row(sheet, head + overview + 0.35 + i * ROW_HEIGHT, layer, limits, changes)
    return sheet.figure


def render(figure: Figure, suffix: str) -> bytes:
    """The figure as the bytes of a file, ".svg" or ".png"; equal figures give equal bytes."""
    import matplotlib

    made = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = {"Date": None} if suffix == ".svg" else {}
        figure.savefig(made, format=suffix[1:], dpi=110, metadata=metadata)
    return made.getvalue()


_STYLE: Any = {
    "svg.hashsalt": "leanconv",
    "svg.fonttype": "none",
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "image.cmap": "viridis",
}


class _Sheet:
    """A figure on which places are inches from the left and from the top."""

    def __init__(self, figure: Figure, height: float) -> None:
        self.figure, self.height = figure, height

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        bottom = 1 - (y + height) / self.height
        return self.figure.add_axes((x / WIDTH, bottom, width / WIDTH, height / self.height))

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        self.figure.text(x / WIDTH, 1 - y / self.height, text, **options)


def _limits(values: np.ndarray, margin: float = 0.0) -> tuple[float, float]:
    """Of a scale: the values' range, widened to LEAST_SPAN, plus a share of it on both sides."""
    low, high = float(values.min()), float(values.max())
    more = max(LEAST_SPAN - (high - low), 0) / 2 + margin * max(high - low, LEAST_SPAN)
    return low - more, high + more


def _short(name: str, length: int = 16) -> str:
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-(length // 2 - 1) :]}"


def _thumbnails(sheet: _Sheet, pictures: Sequence[tuple[str, np.ndarray]], count: int) -> None:
    note = "The picture, as the network gets it" if count == 1 else f"The {count} pictures, as the network gets them"
    if count > len(pictures):
        note += f"; the first {len(pictures)} are shown and have curves, means and deviations are over all"
    sheet.text(LEFT, 0.62, note, color=QUIET)
    for i, ((name, pixels), colour) in enumerate(zip(pictures, COLOURS, strict=False)):
        axes = sheet.axes(LEFT + i * (THUMBNAIL + 0.6), 0.75, THUMBNAIL, THUMBNAIL)
        axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(_short(name), fontsize=7)
        for spine in axes.spines.values():
            spine.set(edgecolor=colour, linewidth=2.5)


def _overview(sheet: _Sheet, y: float, layers: Sequence[LayerAttention], rows: Sequence[LayerAttention]) -> None:
    """Mean and range of A by layer at the left, the two parts of its spread at the right."""
    summaries = [layer.summary() for layer in layers]
    numbers = {key: np.array([s[key] for s in summaries], dtype=float) for key in summaries[0]}
    at = np.arange(len(layers))
    width = (RIGHT - LEFT - 1.6) / 2
    left, right = (sheet.axes(x, y, width, PANEL) for x in (LEFT + 0.4, RIGHT - width))
    left.fill_between(at, numbers["min"], numbers["max"], color=COLOURS[0], alpha=0.18, lw=0, label="min to max")
    left.plot(at, numbers["mean"], color=COLOURS[0], marker="o", ms=3, label="mean")
    left.set_title(f"Attention A by layer ({len(layers)} AW-convolutions)")
    right.plot(at, numbers["deviation"], color=QUIET, marker="o", ms=3, label="over channels and taps")
    if layers[0].change is not None:
        right.plot(at, numbers["deviation_pictures"], color=COLOURS[1], marker="o", ms=3, label="over the pictures")
    right.set_title("Standard deviation of A")
    right.set_ylim(0, max(right.get_ylim()[1], LEAST_SPAN))
    marked = [i for i, layer in enumerate(layers) if any(layer is row for row in rows)]
    marked = marked[:: -(-len(marked) // LABELS)]
    for axes in (left, right):
        axes.grid(axis="y")
        axes.set_xticks(marked, [layers[i].name for i in marked], rotation=20, ha="right")
        axes.margins(x=0.02)
        axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, frameon=False)
    which = "all layers" if len(rows) == len(layers) else f"{len(rows)} of {len(layers)} layers (--layers chooses)"
    note = f"Below: {which}. Channels are sorted by their mean A."
    if layers[0].change is None:
        note += " With several pictures, the sheet also shows how much A differs between them."
    sheet.text(LEFT, y + PANEL + 0.9, note, color=QUIET)


def _row(sheet: _Sheet, y: float, layer: LayerAttention, limits: tuple[float, float], changes: float) -> None:
    """Taps, channels x taps, a curve a picture, and the changes between pictures."""
    from matplotlib.ticker import MaxNLocator

    sheet.text(LEFT, y, layer.name, size=10, weight="bold")
    sheet.text(CHANNELS[0], y, layer.about, color=QUIET)
    top = y + 0.3
    order = np.argsort(layer.mean.mean((1, 2)), kind="stable")
    low, high = _limits(layer.mean)
    axes = sheet.axes(TAPS[0], top, TAPS[1], MAP)
    taps = layer.mean.mean(0)
    axes.imshow(taps, vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[], title="mean by tap")
    if taps.size <= 9:
        for (i, j), value in np.ndenumerate(taps):
            colour = "white" if value < 0.4 * low + 0.6 * high else "black"
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7, color=colour)
    _strip(
        sheet,
        CHANNELS,
        top,
        layer,
        layer.mean[order],
        (low, high),
        "A" if layer.change is None else "A, mean over the pictures",
    )
    axes = sheet.axes(CURVES[0], top, CURVES[1], MAP)
    for values, colour in zip(layer.values.mean((2, 3)), COLOURS, strict=False):
        axes.plot(values[order], color=colour, lw=1.0, marker="." if len(order) == 1 else "")
    axes.set(ylim=limits, xlabel=f"{layer.axis}, sorted", title="A by picture, mean over the taps")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y")
    if layer.change is not None:
        title = "standard deviation over the pictures"
        _strip(sheet, CHANGES, top, layer, layer.change[order], (0.0, changes), title, cmap="magma")


def _strip(
    sheet: _Sheet,
    column: tuple[float, float],
    top: float,
    layer: LayerAttention,
    values: np.ndarray,
    limits: tuple[float, float],
    title: str,
    cmap: str = "viridis",
) -> None:
    """Taps, row by row of the kernel, against channels, with a colour bar."""
    axes = sheet.axes(column[0], top, column[1], MAP)
    channels, height, width = values.shape
    image = axes.imshow(values.reshape(channels, -1).T, aspect="auto", vmin=limits[0], vmax=limits[1], cmap=cmap)
    axes.set(xlabel=f"{layer.axis}, sorted", title=title)
    axes.set_ylabel("tap: row, column", fontsize=7)
    step = -(-height * width // 9)
    shown = range(0, height * width, step)
    axes.set_yticks(list(shown), [f"{i // width},{i % width}" for i in shown], fontsize=5.5)
    sheet.figure.colorbar(image, cax=sheet.axes(column[0] + column[1] + 0.08, top, 0.1, MAP))
