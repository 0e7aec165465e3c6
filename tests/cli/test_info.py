"""`leanconv info`: counts by layer, and the drawing of a fractal unit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from leanconv.cli.errors import CommandError
from leanconv.cli.info import draw, drawing, info


@pytest.fixture(scope="module")
def fractal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a narrow RF network."""
    from leanconv.networks import from_name
    from leanconv.train import checkpoint

    network = from_name("rf_c3d4_resnet21_cifar", width=3, num_classes=4)
    path = tmp_path_factory.mktemp("fractal") / "fractal.safetensors"
    checkpoint.save(
        path,
        network.model,
        name="rf_c3d4_resnet21_cifar",
        model_args=network.arguments,
        preprocessing={"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
        | {"interpolation": network.rules.interpolation, "crop_pct": network.rules.crop_pct},
        classes=list("abcd"),
    )
    return path


def counts_of(capsys, target: object, size: int | None = None) -> dict:
    capsys.readouterr()
    info(str(target), True, size)
    return json.loads(capsys.readouterr().out)


def test_fractal_checkpoint_by_layer(fractal, capsys):
    counts = counts_of(capsys, fractal)
    assert counts["depth"] == 1 + 4 * 4 + 3 + 1 and counts["convs_per_unit"] == 7
    for key in ("parameters_binary", "parameters_real", "macs_binary", "macs_real", "ops"):
        assert sum(row[key] for row in counts["layers"]) == counts[key]
    stem = next(row for row in counts["layers"] if row["name"] == counts["stem"])
    assert stem["kind"] == "conv" and stem["input"] == [32, 32, 3] and stem["output"] == [32, 32, 3]
    assert counts["ops"] - counts["ops_without_stem"] == stem["ops"] == 32 * 32 * 3 * 27
    assert sum(row["bytes_packed"] for row in counts["layers"]) < counts["bytes_packed"]
    assert counts["size"] == [32, 32] and counts_of(capsys, fractal, 64)["macs_binary"] == 4 * counts["macs_binary"]


def test_tables(fractal, capsys):
    counts = counts_of(capsys, fractal)
    info(str(fractal), False, None)
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    for row in counts["layers"]:
        line = lines[row["name"]]
        assert all("x".join(map(str, row[side])) in line for side in ("input", "output")) and row["kind"] in line
    stem = next(row for row in counts["layers"] if row["name"] == counts["stem"])
    for name, key in (("float MACs", "macs_real"), ("OPs", "ops"), ("bytes in memory", "bytes_memory")):
        line = next(line for line in text.splitlines() if line.startswith(f" {name}"))
        assert line.split()[-2:] == [f"{counts[key]:,.0f}", f"{counts[key] - stem[key]:,.0f}"]
    assert "without the stem (conv1)" in text and "7 convolutions" in text


def test_a_packed_file_needs_no_torch(packed):
    code = (
        "import sys\nfor name in ('torch', 'timm'): sys.modules[name] = None\n"
        f"from leanconv.cli.info import info\ninfo({str(packed)!r}, True, None)"
    )
    counts = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert "convs_per_unit" not in counts and counts["bytes_packed"] == packed.stat().st_size
    assert counts["depth"] > 1 and counts["layers"][0]["input"] == [8, 8, 1]


def test_networks_without_units_have_no_count_of_them(checkpoint, capsys):
    assert "convs_per_unit" not in counts_of(capsys, checkpoint)


def test_draw(leanconv, fractal, tmp_path):
    target = tmp_path / "unit.svg"
    said = leanconv("info", fractal, "--draw", target).stdout
    assert str(target) in said and "layer1.0.unit" in said and "7 layers" in said
    boxes = [e for e in ElementTree.parse(target).iter() if e.get("class") == "layer"]
    assert len(boxes) == 7


def test_the_drawing_of_a_dense_unit_shows_widths_and_concatenation():
    svg, about = drawing("drf_c2d2_densenet51_cifar")
    assert about.startswith("layer1.1.unit: 2 columns")
    assert svg.count("106 → 53 channels") == 2 and svg.count("53 → 53 channels") == 1 and ">concat<" in svg


def test_what_cannot_be_drawn(leanconv, fractal, checkpoint, packed, tmp_path):
    target = tmp_path / "unit.svg"
    with pytest.raises(CommandError, match="no fractal unit"):
        draw(str(checkpoint), target)
    with pytest.raises(CommandError, match="packed file"):
        draw(str(packed), target)
    with pytest.raises(CommandError, match=r"must end in \.svg"):
        draw(str(fractal), tmp_path / "unit.png")
    with pytest.raises(CommandError, match="no such folder"):
        draw(str(fractal), tmp_path / "missing" / "unit.svg")
    assert "twice" in leanconv("info", fractal, "--draw", target, "--json", code=2).stderr
    assert not list(tmp_path.iterdir())
