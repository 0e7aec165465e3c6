"""benchmarks/speed_page.py: docs/speed.md is what results/speed/ says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speed_page
from benchmarks.speed_page import page
from benchmarks.speed_results import read_machines

ROOT = Path(__file__).parents[2]
MACHINE = {"cpu": "Some Core", "cores": 2, "flags": ["avx2"], "system": "Linux 1"}


def row(network: str, engine: str, ms: float, note: str = "", batch: int = 1) -> dict:
    layers = "fp32" if engine == "leanconv" and network == "bin" else None
    about = {"network": network, "engine": engine, "note": note, "batch": batch, "real_layers": layers, "bytes": 4000}
    return about | {"ms": ms, "fastest_ms": ms}


def results(
    root: Path,
    name: str = "one",
    *,
    cpu: str = "Some Core",
    total: float = 0.8,
    layer_ms: float = 1.0,
    busy_ms: float = 6.0,
    load: float = 0.01,
) -> Path:
    """Made-up results of a machine: round numbers, so that every ratio can be seen."""
    folder, machine = root / name, MACHINE | {"cpu": cpu}
    folder.mkdir(exist_ok=True)
    isas = ["avx512vpopcntdq", "avx2"]

    def layer(name: str, count: int, share: float) -> dict:
        ours = {"ms": layer_ms, "fastest_ms": layer_ms, "share": share, "fastest_share": share}
        rivals = {"onnxruntime-int8": {"ms": 5.5, "fastest_ms": 5.5}, "onnxruntime": {"ms": 19.0, "fastest_ms": 19.0}}
        return {"layer": name, "count": count, "macs": 1, "leanconv": dict.fromkeys(isas, ours), "rivals": rivals}

    about = {"leanconv": {"version": "1"}, "onnxruntime-int8": {"version": "2"}}
    common = {"machine": machine, "rounds": 3, "other_load": load, "about": about}
    layers = common | {"threads": 1, "batch": 1, "isas": isas, "peaks": dict.fromkeys(isas, 1000.0)}
    layers |= {"layers": [layer("wide", 1, 0.9), layer("thin", 3, 0.7), layer("extra", 0, 0.1)]}
    layers |= {"total": layer("all 4", 4, total)}
    (folder / "layers.json").write_text(json.dumps(layers))
    (folder / "layers_2threads.json").write_text(json.dumps(layers | {"threads": 2}))
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
    network = {"machine": machine, "model": "bin", "twin": "real", "size": [8, 8], "rounds": 3, "runs": runs}
    network |= {"loading": [loading | {"file": "a", "bytes": 4000}, loading | {"file": "b", "bytes": 2000}]}
    network |= {"checkpoint_bytes": 44000}
    network |= {"busy": [{"engine": "leanconv", "note": "", "threads": 1, "calls": 9, "busy_processes": 2}]}
    network["busy"][0] |= {"quiet": {"median_ms": 2.0, "p95_ms": 3.0, "longest_ms": 4.0}, "busy": slow}
    work = [{"name": "conv1", "kind": "conv", "ms": 3.0, "limit_ms": 0.3}]
    work += [{"name": f"b{i}", "kind": "binary_conv", "ms": 1.0, "limit_ms": 0.1} for i in range(3)]
    network |= {"profiles": [{"file": "a", "real_layers": "fp32", "threads": 1, "rows": work}]}
    (folder / "network.json").write_text(json.dumps(network))
    return root


def cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_goals_beside_what_was_measured(tmp_path):
    text = page(read_machines(results(tmp_path)))
    expected = {
        "16 convolutions, fused: share of the xor/popcount peak": ["85 %", "92 %", "80 %, 6 % short"],
        "the worst layer of them": ["80 %", "88 %", "70 %, 13 % short"],  # extra layers do not count
        "16 convolutions against ONNX Runtime int8": ["5.00x", "5.50x", "5.50x, stretch too"],
        "16 convolutions against ONNX Runtime fp32": ["20.0x", "21.0x", "19.0x, 5 % short"],
        "whole network against ONNX Runtime int8": ["4.20x", "4.60x", "4.30x, reached"],
        "whole network against OpenVINO int8": ["3.70x", "4.00x", "not measured"],
        "whole network against ONNX Runtime fp32": ["14.0x", "15.5x", "13.0x, 7 % short"],
        "the float network in fp32: share of ONNX Runtime's speed": ["60 %", "", "65 %, reached"],
        "two threads against one": ["1.90x", "1.95x", "2.00x, stretch too"],
        "packed file against the fp32 checkpoint": ["16.0x", "22.0x", "22.0x, stretch too"],
        "loading the packed file": ["at most 20.0 ms", "5.00 ms", "6.00 ms, reached"],
        "every core busy: median call against quiet": ["at most 4.00x", "", "3.00x, reached"],
        "every core busy: 95th percentile": ["at most 20.0 ms", "", "15.0 ms, reached"],
        "an image in a batch of 8 against batch 1": ["at most 1.05x", "", "1.10x, 5 % too much"],
    }
    for name, row_cells in expected.items():
        assert cells(text, name) == row_cells, name
    missed = text.partition("Where a goal was missed on Some Core:")[2].partition("##")[0]
    # the worst layer and fp32 convolutions share a reason
    assert missed.count("\n- **") == 3 and "**the worst layer of them** (70 %), **16 conv" in missed


def test_a_slow_machine_misses_goals_of_at_most(tmp_path):
    text = page(read_machines(results(tmp_path, busy_ms=10.0)))
    assert cells(text, "every core busy: median call against quiet")[-1] == "5.00x, 25 % too much"


def test_two_machines(tmp_path):
    """A column and a section each; a goal that a machine's peak does not allow is that machine's fault."""
    results(tmp_path)
    results(tmp_path, "two", cpu="Intel(R) Xeon(R) Processor", total=0.95, load=0.5)
    rates = [
        {"name": kind, "isa": "avx512", "kind": kind, "macs_per_cycle": 1.0} for kind in ("binary", "int8", "fp32")
    ]
    rates = [rate | {"gmacs": gmacs} for rate, gmacs in zip(rates, (1100.0, 440.0, 100.0), strict=True)]
    run = {"threads": 1, "clock_ghz": 3.0, "arithmetic": rates, "bandwidth": []}
    peaks = {"machine": MACHINE | {"cpu": "Intel(R) Xeon(R) Processor"}, "runs": [run]}
    (tmp_path / "two" / "peak.json").write_text(json.dumps(peaks))
    (tmp_path / "empty").mkdir()
    text = page(read_machines(tmp_path))
    assert cells(text, "goal") == ["at least", "stretch", "measured, Some Core", "measured, Intel Xeon (provisional)"]
    fused = cells(text, "16 convolutions, fused: share of the xor/popcount peak")
    assert fused == ["85 %", "92 %", "80 %, 6 % short", "95 %, stretch too"]
    assert [line for line in text.splitlines() if line.startswith("## ")][2:4] == ["## Some Core", "## Intel Xeon"]
    one, _, two = text.partition("## How to read")[0].partition("Where a goal was missed on Intel Xeon:")
    assert "what this machine allows" not in one
    (line,) = [line for line in two.splitlines() if "what this machine allows" in line]
    assert line.startswith(
        "- **16 convolutions against ONNX Runtime fp32** (19.0x, at the limit 20.0x): would take more"
    )
    assert "2.5 times the multiply-adds of int8 here and 11 times those of fp32" in line and "two ports" in line
    (tmp_path / "two" / "peak.json").unlink()
    results(tmp_path, "two")
    titles = [line for line in page(read_machines(tmp_path)).splitlines() if line.startswith("## Some Core")]
    assert titles == ["## Some Core (one)", "## Some Core (two)"]


def test_it_says_where_one_bit_loses_and_whether_the_machine_was_quiet(tmp_path):
    text = page(read_machines(results(tmp_path)))
    lost = text.partition("## Where 1-bit loses")[2]
    assert "AMX" in lost and "not measured here" in lost and "extra: 10%" in lost
    assert "On Some Core held to AVX2, MobileNetV2 takes 2.00 ms (openvino), `bin` 4.00 ms, 2.0 times as long." in lost
    quick = "MobileNetV2 takes 1.50 ms (openvino-int8), `bin` 1.00 ms, 1.5 times as fast"
    assert f"On Some Core with all instructions, {quick}" in lost
    assert "Provisional" not in text
    assert "**Provisional:** other processes used up to 50%" in page(read_machines(results(tmp_path, load=0.5)))


def test_profile_and_other_forms_of_the_layers(tmp_path):
    text = page(read_machines(results(tmp_path)))
    assert cells(text, "binary_conv") == ["3.000", "50%", "0.300", "10%"]
    forms = text.partition("| layer | times | 1 thread, batch 1, ms | of peak | 2 threads, batch 1, ms | of peak |")[2]
    assert cells(forms.partition("\n\n")[0], "thin") == ["3", "1.0000", "70%", "1.0000", "70%"]
    assert cells(forms, "onnxruntime, of ours") == ["", "19.0x", "", "19.0x", ""]


def test_without_results(tmp_path):
    assert page(read_machines(tmp_path)).endswith("\nNothing was measured yet.\n")


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
    assert text == page(read_machines(ROOT / "results" / "speed")), "python benchmarks/speed_page.py"
