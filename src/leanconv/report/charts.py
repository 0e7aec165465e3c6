"""Small charts as inline SVG. Colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 64, 14, 34


@dataclass
class Line:
    """One curve: a name shown at its end, a CSS class that gives its colour, and its points (x, y)."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover [low, high].

    >>> nice_ticks(0.0, 0.93)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power * count >= span * 0.999), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def line_chart(
    lines: Sequence[Line], x_label: str, label: str, form: Callable[[float], str], low: float | None = None
) -> str:
    """Curves over a common x axis. `form` writes a y value, `low` fixes the lower end of the y axis."""
    lines = [Line(ln.name, ln.style, [p for p in ln.points if math.isfinite(p[1])]) for ln in lines]
    lines = [line for line in lines if line.points]
    points = [p for line in lines for p in line.points]
    if not points:
        return f'<p class="quiet">no values for {escape(label)}</p>'
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ticks = nice_ticks(min(ys) if low is None else low, max(ys))
    x_ticks = [t for t in nice_ticks(min(xs), max(xs)) if min(xs) <= t <= max(xs)]
    x_span = max(max(xs) - min(xs), 1e-9)

    def px(x: float) -> float:
        return LEFT + (x - min(xs)) / x_span * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        share = (y - ticks[0]) / max(ticks[-1] - ticks[0], 1e-9)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{py(tick) + 4:.1f}" text-anchor="end">{form(tick)}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text class="tick" x="{px(tick):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{tick:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    for line, end in zip(lines, _spread([py(line.points[-1][1]) for line in lines]), strict=True):
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="curve {line.style}" points="{path}"/>')
        for x, y in line.points:
            hint = f"{line.name}, {x_label} {x:g}: {form(y)}"
            parts.append(
                f'<circle class="point {line.style}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="7">'
                f"<title>{escape(hint)}</title></circle>"
            )
        parts.append(
            f'<text class="name {line.style}" x="{px(line.points[-1][0]) + 8:.1f}" y="{end + 4:.1f}">'
            f"{escape(line.name)}</text>"
        )
    return "".join([*parts, "</svg>"])


def _spread(positions: list[float], least: float = 15.0) -> list[float]:
    """Move label positions apart so that none overlap."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = list(positions)
    for before, after in itertools.pairwise(order):
        placed[after] = max(placed[after], placed[before] + least)
    lowest = HEIGHT - BOTTOM
    if placed and max(placed) > lowest:
        shift = max(placed) - lowest
        placed = [p - shift for p in placed]
    return placed


def bars(rows: Sequence[tuple[str, float, str, str]]) -> str:
    """Horizontal bars: (name, value, text, CSS class), all from zero on one scale."""
    longest = max((value for _, value, _, _ in rows), default=0.0) or 1.0
    cells = "".join(
        f'<div class="bar-name">{escape(name)}</div>'
        f'<div class="bar-track"><div class="bar {style}" style="width:{max(100 * value / longest, 0.5):.2f}%"></div>'
        f'<span class="bar-text">{escape(text)}</span></div>'
        for name, value, text, style in rows
    )
    return f'<div class="bars">{cells}</div>'
