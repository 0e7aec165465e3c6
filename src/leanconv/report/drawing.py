"""A fractal unit drawn as SVG: columns of layers from top to bottom, joins as circles, shortcuts around the layers."""

from __future__ import annotations

from html import escape

from torch import nn

from leanconv.nn.binary_conv import BinaryConv2d
from leanconv.nn.fractal import BinaryResidualLayer, FractalUnit

BOX_WIDTH, BOX_HEIGHT = 168, 46
PITCH = 232  # from column to column
MARGIN = 24
RADIUS, ADD_RADIUS = 21, 8  # of a join, of the sum at the end of a shortcut
BEND = 8  # rounds the corners of lines

STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", Arial, sans-serif; }
text { fill: #1c1d20; font-size: 13px; text-anchor: middle; }
.title { font-size: 15px; font-weight: 600; text-anchor: start; }
.quiet { fill: #62656d; font-size: 12px; }
.page { fill: #ffffff; }
.layer { fill: #e8f1fb; stroke: #0b6bcb; stroke-width: 1.4; }
.layer.real { fill: #fbeee4; stroke: #c2570c; }
.join { fill: #fdf3d3; stroke: #a67700; stroke-width: 1.4; }
.add { fill: #ffffff; stroke: #62656d; stroke-width: 1.2; }
.concat { fill: #eceae4; stroke: #62656d; stroke-width: 1.2; }
.line { fill: none; stroke: #3d4048; stroke-width: 1.4; }
.shortcut { fill: none; stroke: #62656d; stroke-width: 1.2; stroke-dasharray: 5 3; }
.tip { fill: #3d4048; }
"""


def draw_unit(unit: FractalUnit, *, concat: bool = False) -> str:
    """One unit as the text of an SVG file: a box a layer, a circle a join, a dashed line a shortcut.

    Column 1, the shortest, is at the left. Lines that meet on their way to a circle are inputs of that join. With
    `concat`, the concatenation of the unit's input and result is drawn too (dense networks).

    >>> unit = FractalUnit(2, lambda first: BinaryResidualLayer(8))
    >>> text = draw_unit(unit)
    >>> text.count('class="layer"'), text.count('class="join"')
    (3, 1)
    """
    return _Drawing(unit, concat).render()


def describe_layer(layer: nn.Module) -> str:
    """What a layer computes, in order.

    >>> describe_layer(BinaryResidualLayer(8))
    'sign, 3x3 binary, BN'
    """
    words: list[str] = []
    for module in layer.children():
        if isinstance(module, BinaryConv2d):
            words += ["sign"] * (module.binarize_input is not None) + [f"{_kernel(module)} binary"]
        elif isinstance(module, nn.Conv2d):
            words.append(_kernel(module))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            words.append("BN")
        elif not isinstance(module, nn.Identity) and not (isinstance(module, nn.Dropout) and not module.p):
            words.append(type(module).__name__)
    return ", ".join(words) or type(layer).__name__


def _kernel(conv: nn.Conv2d) -> str:
    return "x".join(map(str, conv.kernel_size))


def _convolution(layer: nn.Module) -> nn.Conv2d | None:
    return next((m for m in layer.modules() if isinstance(m, nn.Conv2d)), None)


def _has_shortcut(layer: nn.Module) -> bool:
    return isinstance(layer, BinaryResidualLayer) or getattr(layer, "shortcut", False) is True


class _Drawing:
    """Places rows first (one a position of the longest column), then draws into `lines` below `shapes`."""

    def __init__(self, unit: FractalUnit, concat: bool) -> None:
        self.unit, self.concat = unit, concat
        self.lines: list[str] = []
        self.shapes: list[str] = []
        self.trunk = self._x(unit.columns)
        self.starts = [112.0]  # where the layers that follow position p branch off
        self.joins: list[list[float]] = []  # the circles at the end of each position
        self.ends: list[float] = []  # where the layers that end at a position turn to the first circle
        for here in unit.ends:
            bottom = self.starts[-1] + 34 + BOX_HEIGHT + 30
            count = 0 if len(here) == 1 else 1 if unit.merged else len(here) - 1
            self.joins.append([bottom + RADIUS + i * (2 * RADIUS + 18) for i in range(count)])
            self.ends.append(self.joins[-1][0] if count else bottom)
            self.starts.append(self.joins[-1][-1] + RADIUS + 16 if count else bottom)

    def _x(self, column: int) -> float:
        return MARGIN + BOX_WIDTH / 2 + (column - 1) * PITCH

    def render(self) -> str:
        unit = self.unit
        for column in range(1, unit.columns + 1):
            self._text(self._x(column), 62, f"column {column}", "quiet")
        self._text(self.trunk, 88, "input", "quiet")
        self._line([(self.trunk, 92), (self.trunk, self.starts[0])])
        for position, here in enumerate(unit.ends, start=1):
            for column in here:
                self._layer(column, position)
            self._join(position, here)
        bottom = self._finish()
        width = max(self.trunk + BOX_WIDTH / 2 + 40 + (36 if self.concat else 0), 440)  # the title's width
        joins = sum(map(len, self.joins))
        title = (
            f"Fractal unit: {_many(unit.columns, 'column')}, {_many(len(unit.layers), 'layer')}, depth {unit.depth}, "
            f"{_many(joins, 'join')}"
        )
        self.shapes.append(f'<text class="title" x="{MARGIN}" y="30">{title}</text>')
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {bottom:g}" width="{width:g}" '
                f'height="{bottom:g}" role="img" aria-label="{title}">',
                f"<style>{STYLE}</style>",
                '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
                'markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0 0.8 L8 4 L0 7.2 z"/>'
                "</marker></defs>",
                f'<rect class="page" width="{width:g}" height="{bottom:g}"/>',
                *self.lines,
                *self.shapes,
                "</svg>\n",
            ]
        )

    def _layer(self, column: int, position: int) -> None:
        """A box halfway between where its input branches off and where its output turns to the join."""
        layer = self.unit.layers[f"c{column}p{position}"]
        x, start, end = self._x(column), self.starts[position - self.unit.span(column)], self.ends[position - 1]
        shortcut = _has_shortcut(layer)
        last = end - RADIUS if self.joins[position - 1] and column == self.unit.columns else end
        top = (start + last - BOX_HEIGHT) / 2 - (2 if shortcut else 0)
        below = top + BOX_HEIGHT
        self._line([(self.trunk, start), (x, start), (x, top)], tip=True)
        if shortcut:
            branch, add, side = top - 12, below + 14, x + BOX_WIDTH / 2 + 18
            self._line([(x, branch), (side, branch), (side, add), (x + ADD_RADIUS, add)], tip=True, style="shortcut")
            self._line([(x, below), (x, add)])
            self.shapes.append(f'<circle class="add" cx="{x:g}" cy="{add:g}" r="{ADD_RADIUS}"/>')
            self.shapes.append(f'<path class="line" d="M{x - 4:g} {add:g} h8 M{x:g} {add - 4:g} v8"/>')
            below = add + ADD_RADIUS
        self._exit(column, position, x, below)
        conv = _convolution(layer)
        real = conv is not None and not isinstance(conv, BinaryConv2d)
        self.shapes.append(
            f'<rect class="layer{" real" if real else ""}" x="{x - BOX_WIDTH / 2:g}" y="{top:g}" '
            f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
        )
        middle = top + BOX_HEIGHT / 2
        self._text(x, middle - (3 if conv is not None else -4), describe_layer(layer))
        if conv is not None:
            self._text(x, middle + 15, f"{conv.in_channels} → {conv.out_channels} channels", "quiet")

    def _exit(self, column: int, position: int, x: float, below: float) -> None:
        """From a layer to its join, or on to the next layer."""
        circles, here = self.joins[position - 1], self.unit.ends[position - 1]
        if not circles:
            self._line([(x, below), (x, self.ends[position - 1])])
        elif column == self.unit.columns:
            self._line([(x, below), (x, circles[0] - RADIUS)], tip=True)
        else:  # merged: all into one circle; nested: column c - 1 into the first, c - 2 into the second, ...
            y = circles[0 if self.unit.merged else len(here) - 2 - here.index(column)]
            self._line([(x, below), (x, y), (self.trunk - RADIUS, y)], tip=True)

    def _join(self, position: int, here: tuple[int, ...]) -> None:
        circles = self.joins[position - 1]
        for i, y in enumerate(circles):
            self.shapes.append(f'<circle class="join" cx="{self.trunk:g}" cy="{y:g}" r="{RADIUS}"/>')
            self._text(self.trunk, y + 4, self.unit.join, "quiet")
            if i:
                self._line([(self.trunk, circles[i - 1] + RADIUS), (self.trunk, y - RADIUS)], tip=True)
        if circles:
            self._line([(self.trunk, circles[-1] + RADIUS), (self.trunk, self.starts[position])])

    def _finish(self) -> float:
        """The unit's end, with the concatenation where it has one. Returns the height of the drawing."""
        x, y = self.trunk, self.starts[-1]
        if self.concat:
            top, side = y + 12, x + BOX_WIDTH / 2 + 44
            self._line([(x, y), (x, top)], tip=True)
            middle = top + 14
            self._line([(x, 100), (side, 100), (side, middle), (x + 38, middle)], tip=True)
            self.shapes.append(f'<rect class="concat" x="{x - 38:g}" y="{top:g}" width="76" height="28" rx="6"/>')
            self._text(x, middle + 4, "concat")
            y = top + 28
        self._line([(x, y), (x, y + 22)], tip=True)
        self._text(x, y + 38, "output", "quiet")
        return y + 38 + MARGIN

    def _text(self, x: float, y: float, text: str, style: str = "") -> None:
        shown = f' class="{style}"' if style else ""
        self.shapes.append(f'<text{shown} x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def _line(self, points: list[tuple[float, float]], *, tip: bool = False, style: str = "line") -> None:
        """A line through `points`, its corners rounded, with an arrow's tip at its end."""
        points = [p for i, p in enumerate(points) if not i or p != points[i - 1]]
        path = f"M{points[0][0]:g} {points[0][1]:g}"
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            (ax, ay), (bx, by) = _towards(corner, before), _towards(corner, after)
            path += f" L{ax:g} {ay:g} Q{corner[0]:g} {corner[1]:g} {bx:g} {by:g}"
        path += f" L{points[-1][0]:g} {points[-1][1]:g}"
        marker = ' marker-end="url(#tip)"' if tip else ""
        self.lines.append(f'<path class="{style}" d="{path}"{marker}/>')


def _towards(corner: tuple[float, float], point: tuple[float, float]) -> tuple[float, float]:
    """The point at most BEND away from a corner in the direction of another; lines are horizontal or vertical."""
    dx, dy = point[0] - corner[0], point[1] - corner[1]
    length = abs(dx) + abs(dy)
    step = min(BEND, length / 2) / length
    return corner[0] + dx * step, corner[1] + dy * step


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
