"""The page that `leanconv demo` writes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from leanconv.report.charts import Line, bars, line_chart
from leanconv.report.style import STYLE


@dataclass
class Picture:
    """One test picture (uint8, H x W x C) with the true class, the predicted one and its probability."""

    pixels: np.ndarray
    label: str
    predicted: str
    probability: float


@dataclass
class DemoReport:
    """What the page shows. `curves` maps "float" and "1-bit" to rows (epoch, training loss, test top-1)."""

    summary: dict[str, float]
    curves: dict[str, list[tuple[int, float, float]]]
    pictures: list[Picture]
    mistakes: list[Picture]
    test_pictures: int
    names: dict[str, str]
    counts: dict[str, float]
    machine: dict[str, Any]
    versions: dict[str, str]


def png(pixels: np.ndarray) -> str:
    """A picture as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def kilobytes(count: float) -> str:
    """Bytes for people.

    >>> kilobytes(23456)
    '23.5 kB'
    """
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def milliseconds(ms: float) -> str:
    """A latency for people, in microseconds where it is short.

    >>> milliseconds(0.0271)
    '27.1 µs'
    """
    return f"{ms:.2f} ms" if ms >= 1 else f"{ms * 1e3:.1f} µs"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def render(report: DemoReport) -> str:
    """The whole page as HTML text."""
    s = report.summary
    smaller, faster = s["float_bytes"] / s["engine_bytes"], s["onnxruntime_ms"] / s["engine_ms"]
    tiles = [
        (
            percent(s["engine_top1"]),
            f"of {report.test_pictures} unseen digits right in 1-bit; {percent(s['float_top1'])} in float",
        ),
        (
            f"{smaller:.1f}× smaller",
            f"{kilobytes(s['engine_bytes'])} packed, {kilobytes(s['float_bytes'])} as a float checkpoint",
        ),
        (
            f"{faster:.1f}× faster" if faster >= 1 else f"{1 / faster:.1f}× slower",
            f"than onnxruntime on the float twin; PyTorch takes {s['torch_ms'] / s['engine_ms']:.1f}× as long",
        ),
        (percent(s["agreement"]), "of the engine's classes are those of PyTorch"),
    ]
    body = [
        "<header><h1>Handwritten digits in 1-bit arithmetic</h1>",
        "<p>Two networks of the same shape were trained on scikit-learn's digits: one with float weights, one whose "
        "inner convolutions know only +1 and −1. The second was compiled into one packed file and run by the engine, "
        "without PyTorch.</p></header>",
        '<div class="tiles">',
        *(f'<div class="tile"><b>{value}</b><span>{text}</span></div>' for value, text in tiles),
        "</div>",
        _table(report),
        _latency(report),
        _curves(report),
        _pictures(report),
        _next(),
        _footer(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>leanconv demo: digits in 1-bit</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _table(report: DemoReport) -> str:
    s = report.summary
    binary, floating = report.names["1-bit"], report.names["float"]
    rows = [
        ("", "Float network", f"{floating} in PyTorch", s["float_top1"], s["float_bytes"], s["torch_ms"]),
        ("", "Float network", f"{floating} in onnxruntime", s["float_top1"], s["float_bytes"], s["onnxruntime_ms"]),
        ("", "1-bit network", f"{binary} in PyTorch, as trained", s["binary_top1"], None, None),
        (
            "ours",
            "1-bit network, packed",
            "model.lconv in leanconv",
            s["engine_top1"],
            s["engine_bytes"],
            s["engine_ms"],
        ),
    ]
    cells = "".join(
        f'<tr class="{style}"><td>{escape(title)}<small>{escape(where)}</small></td><td>{percent(top1)}</td>'
        f"<td>{'–' if size is None else kilobytes(size)}</td><td>{'–' if ms is None else milliseconds(ms)}</td></tr>"
        for style, title, where, top1, size, ms in rows
    )
    c = report.counts
    return (
        "<section><h2>Accuracy, size and latency</h2>"
        f'<p class="quiet">The 1-bit network: {c["parameters_binary"]:,.0f} binary and {c["parameters_real"]:,.0f} '
        f"real-valued parameters; {c['macs_binary'] / 1e6:.2f} M binary and {c['macs_real'] / 1e6:.2f} M real-valued "
        "multiply-adds a picture.</p>"
        '<div class="scroll"><table><thead><tr><th>network</th><th>top-1</th><th>file</th><th>one picture</th></tr>'
        f"</thead><tbody>{cells}</tbody></table></div></section>"
    )


def _latency(report: DemoReport) -> str:
    s = report.summary
    rows = [
        ("leanconv", s["engine_ms"], milliseconds(s["engine_ms"]), "binary"),
        ("onnxruntime", s["onnxruntime_ms"], milliseconds(s["onnxruntime_ms"]), "float"),
        ("PyTorch", s["torch_ms"], milliseconds(s["torch_ms"]), "float"),
    ]
    return (
        "<section><h2>One picture, one thread</h2>"
        '<p class="quiet">Medians of interleaved repeats in one run. leanconv runs the 1-bit network, the others its '
        f"float twin.</p>{bars(rows)}</section>"
    )


def _curves(report: DemoReport) -> str:
    styles = {"float": "float", "1-bit": "binary"}
    losses = [Line(name, styles[name], [(e, loss) for e, loss, _ in rows]) for name, rows in report.curves.items()]
    top1 = [Line(name, styles[name], [(e, 100 * top) for e, _, top in rows]) for name, rows in report.curves.items()]
    worst = min((y for line in top1 for _, y in line.points), default=0.0)
    low = 80.0 if worst >= 60 else 0.0
    return (
        '<section><h2>Training</h2><div class="two">'
        f"<div><h3>Top-1 on the test pictures</h3>"
        f"{line_chart(top1, 'epoch', 'top-1 by epoch', lambda v: f'{v:g} %', low)}</div>"
        f"<div><h3>Training loss</h3>{line_chart(losses, 'epoch', 'loss by epoch', lambda v: f'{v:.3g}', 0.0)}</div>"
        "</div></section>"
    )


def _figures(pictures: Sequence[Picture]) -> str:
    parts = []
    for p in pictures:
        right = p.label == p.predicted
        note = f"{p.probability:.0%}" if right else f"is {escape(p.label)}"
        parts.append(
            f'<figure class="{"good" if right else "bad"}"><img src="{png(p.pixels)}" alt="digit {escape(p.label)}">'
            f"<figcaption><b>{escape(p.predicted)}</b> {note}</figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(parts)}</div>'


def _pictures(report: DemoReport) -> str:
    parts = [
        "<section><h2>What the engine says</h2>"
        '<p class="quiet">Test pictures with the predicted digit and its probability.</p>',
        _figures(report.pictures),
    ]
    if report.mistakes:
        wrong = round(report.test_pictures * (1 - report.summary["engine_top1"]))
        shown = "all of them" if wrong == len(report.mistakes) else f"{len(report.mistakes)} of {wrong}"
        parts.append(f'<h3 style="margin-top:1.2rem">Mistakes ({shown})</h3>{_figures(report.mistakes)}')
    return "".join([*parts, "</section>"])


def _next() -> str:
    return (
        "<section><h2>Go on from here</h2><pre>leanconv info model.lconv\nleanconv bench model.lconv --profile\n"
        "leanconv run model.lconv your-picture.png</pre></section>"
    )


def _footer(report: DemoReport) -> str:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"<footer>Measured on {escape(str(machine['cpu']))}, {machine['cores']} cores, "
        f"{escape(str(machine['system']))}; {escape(versions)}. "
        f"The whole demo took {report.summary['seconds']:.0f} s.</footer>"
    )
