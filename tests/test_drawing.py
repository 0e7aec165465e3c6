"""The drawing of a fractal unit: well-formed, complete, and nothing outside the picture or on top of another box."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from torch import nn

from leanconv.nn.fractal import BinaryDenseLayer, BinaryResidualLayer, FractalUnit
from leanconv.report.drawing import describe_layer, draw_unit

SVG = "{http://www.w3.org/2000/svg}"


def residual(columns: int, **options: object) -> FractalUnit:
    return FractalUnit(columns, lambda first: BinaryResidualLayer(6), **options)


def dense() -> FractalUnit:
    return FractalUnit(2, lambda first: BinaryDenseLayer(12 if first else 5, 5, shortcut=not first))


def found(text: str, tag: str, style: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(text).iter(SVG + tag) if style in e.get("class", "").split()]


def words(text: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(text).iter(SVG + "text")]


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
@pytest.mark.parametrize("merged", [True, False])
def test_one_box_a_layer_and_one_circle_a_join(columns, merged):
    unit = residual(columns, merged=merged)
    text = draw_unit(unit)
    assert len(found(text, "rect", "layer")) == 2**columns - 1
    # merged: positions at which more than one column ends; nested: each application of the rule joins two
    joins = 2 ** (columns - 1) // 2 if merged else 2 ** (columns - 1) - 1
    assert len(found(text, "circle", "join")) == joins
    assert words(text).count("mean") == joins
    assert words(text).count("sign, 3x3 binary, BN") == 2**columns - 1
    assert len(found(text, "path", "shortcut")) == len(found(text, "circle", "add")) == 2**columns - 1


@pytest.mark.parametrize("unit", [residual(4), residual(4, merged=False), dense()], ids=["merged", "nested", "dense"])
def test_everything_is_inside_and_no_box_covers_another(unit):
    text = draw_unit(unit, concat=True)
    width, height = (float(ElementTree.fromstring(text).get(side, "")) for side in ("width", "height"))
    boxes = [
        [float(e.get(side, "")) for side in ("x", "y", "width", "height")]
        for style in ("layer", "concat")
        for e in found(text, "rect", style)
    ]
    boxes += [
        [float(e.get("cx", "")) - r, float(e.get("cy", "")) - r, 2 * r, 2 * r]
        for style in ("join", "add")
        for e in found(text, "circle", style)
        for r in [float(e.get("r", ""))]
    ]
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    for (x, y, w, h), (x2, y2, w2, h2) in itertools.combinations(boxes, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    for path in ElementTree.fromstring(text).iter(SVG + "path"):
        absolute = re.findall(r"[MLQ]?(-?[\d.]+) (-?[\d.]+)", path.get("d", "")) if path.get("class") == "line" else []
        assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in absolute)


def test_the_dense_unit_shows_widths_shortcut_and_concatenation():
    text = draw_unit(dense(), concat=True)
    assert words(text).count("BN, sign, 3x3 binary") == 3
    assert words(text).count("12 → 5 channels") == 2 and words(text).count("5 → 5 channels") == 1
    assert len(found(text, "path", "shortcut")) == 1
    assert words(text).count("concat") == 1 and "concat" not in words(draw_unit(dense()))


def test_sum_joins_and_float_layers():
    def layer(first: bool) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.0), nn.BatchNorm2d(4), nn.ReLU())

    text = draw_unit(FractalUnit(2, layer, join="sum"))
    assert "sum" in words(text) and words(text).count("3x3, BN, ReLU") == 3
    assert len(found(text, "rect", "real")) == 3 and not found(text, "path", "shortcut")


def test_text_is_escaped():
    class Odd(nn.Module):
        pass

    Odd.__name__ = "A<B&C"
    assert describe_layer(Odd()) == "A<B&C"
    assert "A<B&C" in words(draw_unit(FractalUnit(1, lambda first: Odd())))
