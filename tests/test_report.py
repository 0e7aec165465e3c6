"""The report page: whole, self-contained, and true to its numbers."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

import numpy as np

from leanconv.report import DemoReport, Picture, render
from leanconv.report.charts import Line, bars, line_chart, nice_ticks

SUMMARY = {
    "float_top1": 0.9911,
    "binary_top1": 0.98,
    "engine_top1": 0.98,
    "agreement": 1.0,
    "float_bytes": 1_200_000,
    "engine_bytes": 50_000,
    "engine_ms": 0.03,
    "torch_ms": 0.9,
    "onnxruntime_ms": 0.12,
    "seconds": 61.2,
}


def report(**changes: object) -> DemoReport:
    picture = Picture(np.full((8, 8, 1), 100, np.uint8), "3", "3", 0.93)
    fields = {
        "summary": SUMMARY,
        "curves": {"float": [(1, 1.2, 0.7), (2, 0.4, 0.97)], "1-bit": [(1, 1.6, 0.6), (2, 0.7, 0.95)]},
        "pictures": [picture] * 4,
        "mistakes": [Picture(picture.pixels, "8", "<1>", 0.5)],
        "test_pictures": 50,
        "names": {"float": "resnet_digits", "1-bit": "bireal_digits"},
        "counts": {"parameters_binary": 1e5, "parameters_real": 2e3, "macs_binary": 5e6, "macs_real": 1e5},
        "machine": {"cpu": "A <fast> one", "cores": 2, "system": "Linux"},
        "versions": {"leanconv": "0.1.0"},
    }
    return DemoReport(**(fields | changes))


class Tags(HTMLParser):
    """Checks that every tag is closed, and collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset") and value]

    def handle_startendtag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_self_contained():
    page = render(report())
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.fetched) == 5 and all(source.startswith("data:image/png;base64,") for source in tags.fetched)
    assert not re.search(r"https?://|@import|url\(", page)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_page_says_the_numbers():
    page = render(report())
    for text in ("99.11 %", "98.00 %", "100.00 %", "1.20 MB", "50.0 kB", "30.0 µs", "24.0× smaller", "4.0× faster"):
        assert text in page, text
    assert "4.0× slower" in render(report(summary=SUMMARY | {"onnxruntime_ms": 0.0075}))
    assert "Mistakes (all of them)" in page
    assert "A &lt;fast&gt; one" in page and "&lt;1&gt;" in page and "<1>" not in page


def test_page_without_mistakes():
    assert "Mistakes" not in render(report(mistakes=[]))


def test_line_chart():
    chart = line_chart([Line("a", "float", [(1, 0.0), (2, 10.0), (3, float("nan"))])], "epoch", "loss", str, 0.0)
    points = re.search(r'points="([^"]*)"', chart)
    assert points is not None
    (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in points[1].split())
    assert x1 < x2 and y1 > y2 and "nan" not in chart
    assert "no values for loss" in line_chart([Line("a", "float", [])], "epoch", "loss", str)


def test_labels_of_curves_that_end_together_do_not_overlap():
    lines = [Line(name, "float", [(1, 0.0), (2, 1.0)]) for name in "abc"]
    chart = line_chart(lines, "epoch", "loss", str)
    places = [float(y) for y in re.findall(r'class="name float" x="[^"]*" y="([^"]*)"', chart)]
    assert len(places) == 3 and all(abs(a - b) >= 14 for a, b in itertools.pairwise(places))


def test_ticks_cover_the_range():
    for low, high in ((0, 1), (0.02, 0.93), (3, 4711), (-2, 5), (0, 1e-6), (7, 7)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9 and 2 <= len(ticks) + (low == high) <= 8


def test_bars_are_proportional():
    widths = re.findall(r"width:([\d.]+)%", bars([("a", 1.0, "1 ms", "x"), ("b", 4.0, "4 ms", "y")]))
    assert [float(width) for width in widths] == [25.0, 100.0]
