"""benchmarks/ops_against_latency.py: what it makes of a measurement, and that it makes one."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import ops_against_latency as script

PLACES = {  # network -> engine -> (binary MACs, other MACs, milliseconds on one thread)
    "bireal_resnet18": {"leanconv": (1.6e9, 138e6, 2.0)},
    "rf_c4d8_resnet37": {"leanconv": (2.9e9, 76e6, 3.0)},
    "binary_densenet28": {"leanconv": (4.0e9, 196e6, 6.0)},
    "drf_c2d2_densenet51": {"leanconv": (5.5e9, 155e6, 8.25)},
    "resnet18": {"onnxruntime": (0, 1814e6, 16.0), "onnxruntime-int8": (0, 1814e6, 5.0)},
}


def measured(slower: float = 1.0) -> dict:
    """A made-up result for one and two threads; the dense networks take `slower` times as long."""
    runs = []
    for threads in (1, 2):
        rows = [
            {"network": network, "engine": engine, "bytes": 1000}
            | {"macs_binary": binary, "macs_real": real, "ops": real + binary / 64}
            | {"ms": ms * (slower if "densenet" in network else 1) / threads}
            for network, engines in PLACES.items()
            for engine, (binary, real, ms) in engines.items()
        ]
        runs.append({"threads": threads, "rows": rows, "dense": script.dense_cost(rows)})
    return {"size": [224, 224], "batch": 1, "rounds": 3, "machine": {"cpu": "A <fast> one"}, "runs": runs}


def call(folder: Path, result: dict, *options: str) -> Path:
    page = folder / "page.md"
    if not page.exists():
        page.write_text(f"before\n{script.BEGIN}\n{script.END}\nafter\n")
    (folder / "r.json").write_text(json.dumps(result))
    paths = {"--json": "r.json", "--page": "page.md", "--plot": "plot.svg"}
    script.main([*options, *(str(word) for name, path in paths.items() for word in (name, folder / path))])
    return page


def test_dense_networks_against_their_binary_work():
    cost = measured()["runs"][0]["dense"]
    assert cost == {"drf_c2d2_densenet51": pytest.approx(8.25 / (5.5 / 0.8)), "binary_densenet28": pytest.approx(1.2)}


def test_page_and_plot_are_made_and_checked(tmp_path):
    with pytest.raises(SystemExit, match="out of date"):
        call(tmp_path, measured(), "--check")
    text = call(tmp_path, measured(), "--render").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows[0].startswith("| `bireal_resnet18` | leanconv") and len(rows) == 6
    assert "| 163.0 M | 2.00 ms | 1.00 ms |" in rows[0]
    assert "`drf_c2d2_densenet51` 1.20 (1 thread) and 1.20 (2 threads)" in text
    names = [e.text for e in ElementTree.parse(tmp_path / "plot.svg").iter() if e.tag.endswith("}text")]
    assert all(names.count(network) == 2 * len(engines) for network, engines in PLACES.items())
    call(tmp_path, measured(), "--check")
    with pytest.raises(SystemExit, match="out of date"):
        call(tmp_path, measured(1.01), "--check")


def test_too_slow_dense_networks_are_written_and_then_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"beyond 1\.5"):
        call(tmp_path, measured(1.3), "--render")
    assert "1.56 (1 thread)" in (tmp_path / "page.md").read_text()


def test_pages_without_markers_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("nothing")
    monkeypatch.setattr(script, "measure", lambda *arguments: pytest.fail("measured"))
    with pytest.raises(SystemExit, match="lacks the markers"):
        call(tmp_path, measured())


@pytest.mark.slow
def test_a_small_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "OURS", ("bireal_resnet18", "binary_densenet28"))
    monkeypatch.setattr(script, "FLOAT", ("resnet18",))
    monkeypatch.setattr(script, "LIMIT", 1000)  # times mean nothing here
    call(tmp_path, {}, "--size", "32", "--rounds", "1", "--threads", "1")
    (run,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert [(row["network"], row["engine"]) for row in run["rows"]] == [
        ("bireal_resnet18", "leanconv"),
        ("binary_densenet28", "leanconv"),
        ("resnet18", "onnxruntime"),
        ("resnet18", "onnxruntime-int8"),
    ]
    assert all(row["ms"] > 0 and row["ops"] > 0 for row in run["rows"]) and set(run["dense"]) == {"binary_densenet28"}
