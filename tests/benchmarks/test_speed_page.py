"""benchmarks/speed_page.py: docs/speed.md is what results/ says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speed_page
from benchmarks.speed_page import Measured, page

ROOT = Path(__file__).parents[2]
MACHINE = {"cpu": "A CPU", "cores": 2, "flags": ["avx2"], "system": "Linux 1"}


def row(network: str, engine: str, ms: float, note: str = "", batch: int = 1) -> dict:
    layers = "fp32" if engine == "leanconv" and network == "bin" else None
    about = {"network": network, "engine": engine, "note": note, "batch": batch, "real_layers": layers, "bytes": 4000}
    return about | {"ms": ms, "fastest_ms": ms}


def results(folder: Path, *, layer_ms: float = 1.0, busy_ms: float = 6.0, load: float = 0.01) -> Path:
    """Made-up results: round numbers, so that every ratio can be seen."""
    isas = ["avx512vpopcntdq", "avx2"]

    def layer(name: str, count: int, share: float) -> dict:
        ours = {"ms": layer_ms, "fastest_ms": layer_ms, "share": share, "fastest_share": share}
        rivals = {"onnxruntime-int8": {"ms": 5.5, "fastest_ms": 5.5}, "onnxruntime": {"ms": 19.0, "fastest_ms": 19.0}}
        return {"layer": name, "count": count, "macs": 1, "leanconv": dict.fromkeys(isas, ours), "rivals": rivals}

    about = {"leanconv": {"version": "1"}, "onnxruntime-int8": {"version": "2"}}
    common = {"machine": MACHINE, "rounds": 3, "other_load": load, "about": about}
    layers = common | {"threads": 1, "batch": 1, "isas": isas, "peaks": dict.fromkeys(isas, 1000.0)}
    layers |= {"layers": [layer("wide", 1, 0.9), layer("thin", 3, 0.7), layer("extra", 0, 0.1)]}
    layers |= {"total": layer("all 4", 4, 0.86)}
    (folder / "speed_layers.json").write_text(json.dumps(layers))
    (folder / "speed_layers_2threads.json").write_text(json.dumps(layers | {"threads": 2}))
    rows = [row("bin", "leanconv", 2.0), row("bin", "leanconv", 1.0, "int8"), row("bin", "leanconv", 8.8, "int8", 8)]
    rows += [
        row("real", "onnxruntime-int8", 4.3),
        row("real", "onnxruntime", 13.0),
        row("real", "leanconv", 20.0),
        row("bin", "leanconv", 4.0, "AVX2"),
    ]
    rows += [row("mobilenetv2_100", "openvino", 2.0, "AVX2"), row("mobilenetv2_100", "openvino-int8", 1.5)]
    half = [r | {"ms": r["ms"] / 2} for r in rows]
    runs = [common | {"threads": n, "rows": found} for n, found in ((1, rows), (2, half))]
    loading = {"real_layers": "fp32", "ms": 6.0, "first_call_ms": 1.0}
    slow = {"median_ms": busy_ms, "p95_ms": 15.0, "longest_ms": 30.0}
    network = {"machine": MACHINE, "model": "bin", "twin": "real", "size": [8, 8], "rounds": 3, "runs": runs}
    network |= {"loading": [loading | {"file": "a", "bytes": 4000}, loading | {"file": "b", "bytes": 2000}]}
    network |= {"checkpoint_bytes": 44000}
    network |= {"busy": [{"engine": "leanconv", "note": "", "threads": 1, "calls": 9, "busy_processes": 2}]}
    network["busy"][0] |= {"quiet": {"median_ms": 2.0, "p95_ms": 3.0, "longest_ms": 4.0}, "busy": slow}
    work = [{"name": "conv1", "kind": "conv", "ms": 3.0, "limit_ms": 1.5}]
    work += [{"name": f"b{i}", "kind": "binary_conv", "ms": 1.0, "limit_ms": 0.5} for i in range(3)]
    network |= {"profiles": [{"file": "a", "real_layers": "fp32", "threads": 1, "rows": work}]}
    (folder / "speed_network.json").write_text(json.dumps(network))
    return folder


def cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_goals_beside_what_was_measured(tmp_path):
    text = page(Measured.read(results(tmp_path)))
    expected = {
        "16 convolutions, fused: share of the xor/popcount peak": ["85 %", "92 %", "86 %", "yes"],
        "the worst layer of them": ["80 %", "88 %", "70 %", "no: 13 % short"],  # extra layers do not count
        "16 convolutions against ONNX Runtime int8": ["5.00x", "5.50x", "5.50x", "yes, stretch too"],
        "16 convolutions against ONNX Runtime fp32": ["20.0x", "21.0x", "19.0x", "no: 5 % short"],
        "whole network against ONNX Runtime int8": ["4.20x", "4.60x", "4.30x", "yes"],
        "whole network against OpenVINO int8": ["3.70x", "4.00x", "", "not measured"],
        "whole network against ONNX Runtime fp32": ["14.0x", "15.5x", "13.0x", "no: 7 % short"],
        "the float network in fp32: share of ONNX Runtime's speed": ["60 %", "", "65 %", "yes"],
        "two threads against one": ["1.90x", "1.95x", "2.00x", "yes, stretch too"],
        "packed file against the fp32 checkpoint": ["16.0x", "22.0x", "22.0x", "yes, stretch too"],
        "loading the packed file": ["at most 20.0 ms", "5.00 ms", "6.00 ms", "yes"],
        "every core busy: median call against quiet": ["at most 4.00x", "", "3.00x", "yes"],
        "every core busy: 95th percentile": ["at most 20.0 ms", "", "15.0 ms", "yes"],
        "an image in a batch of 8 against batch 1": ["at most 1.05x", "", "1.10x", "no: 5 % too much"],
    }
    for name, row_cells in expected.items():
        assert cells(text, name) == row_cells, name
    missed = text.partition("Where a goal was missed:")[2].partition("##")[0]
    # the worst layer and fp32 convolutions share a reason
    assert missed.count("\n- **") == 3 and "**the worst layer of them** (70 %), **16 conv" in missed


def test_a_slow_machine_misses_goals_of_at_most(tmp_path):
    text = page(Measured.read(results(tmp_path, busy_ms=10.0)))
    assert cells(text, "every core busy: median call against quiet")[-2:] == ["5.00x", "no: 25 % too much"]


def test_it_says_where_one_bit_loses_and_whether_the_machine_was_quiet(tmp_path):
    text = page(Measured.read(results(tmp_path)))
    lost = text.partition("## Where 1-bit loses")[2]
    assert "AMX" in lost and "not measured here" in lost and "extra: 10%" in lost
    assert "Held to AVX2, MobileNetV2 takes 2.00 ms (openvino), `bin` 4.00 ms, 2.0 times as long." in lost
    assert "With all instructions, MobileNetV2 takes 1.50 ms (openvino-int8), `bin` 1.00 ms, 1.5 times as fast" in lost
    assert "Provisional" not in text
    assert "**Provisional:** other processes used up to 50%" in page(Measured.read(results(tmp_path, load=0.5)))


def test_profile_and_sums(tmp_path):
    text = page(Measured.read(results(tmp_path)))
    assert cells(text, "binary_conv") == ["3.000", "50%", "1.500", "50%"]
    assert cells(text, "2 thread(s), batch 1") == ["1.000", "86%", "5.5x", "19.0x"]


def test_without_results(tmp_path):
    assert page(Measured.read(tmp_path)).endswith("\nNothing was measured yet.\n")


def test_check_notices_a_stale_page(tmp_path):
    options = ["--results", str(results(tmp_path)), "--page", str(tmp_path / "speed.md")]
    with pytest.raises(SystemExit, match="out of date"):
        speed_page.main([*options, "--check"])
    speed_page.main(options)
    speed_page.main([*options, "--check"])
    results(tmp_path, layer_ms=2.0)
    with pytest.raises(SystemExit, match="out of date"):
        speed_page.main([*options, "--check"])


def test_the_page_of_this_checkout_is_up_to_date():
    text = (ROOT / "docs/speed.md").read_text()
    assert text == page(Measured.read(ROOT / "results")), "python benchmarks/speed_page.py"
