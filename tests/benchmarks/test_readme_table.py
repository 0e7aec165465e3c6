"""benchmarks/readme_table.py: the figures of README.md are what results/ says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import readme_table

ROOT = Path(__file__).parents[2]


def row(network: str, engine: str, ms: float, note: str = "", layers: str | None = None, batch: int = 1) -> dict:
    return {"network": network, "engine": engine, "note": note, "batch": batch, "real_layers": layers, "ms": ms}


def test_readme_is_up_to_date():
    readme = (ROOT / "README.md").read_text()
    assert readme_table.filled(readme, ROOT / "results") == readme


def test_a_network_against_its_rivals():
    """Of each engine its quicker form on that network; other networks, batches and instruction sets are left out."""
    rows = [
        row("bin", "leanconv", 2.0, layers="fp32"),
        row("bin", "leanconv", 1.0, "bin_int8", layers="int8"),
        row("bin", "leanconv", 0.5, "bin_int8", layers="int8", batch=8),
        row("bin", "leanconv", 9.0, "AVX2 bin_int8", layers="int8"),
        row("real", "leanconv", 7.0),
        row("real", "torch", 30.0),
        row("other", "torch", 3.0),
        row("real", "openvino", 10.0),
        row("real", "openvino", 5.0, "AVX2"),
        row("bin", "Larq Compute Engine", 90.0),
        row("bin", "Larq Compute Engine", 40.0, "indirect BGEMM"),
    ]
    result = {"model": "bin", "twin": "real", "size": [8, 8], "machine": {"cpu": "Some Core", "flags": ["avx2"]}}
    result["runs"] = [{"threads": 1, "rows": rows}]
    quick, exact = readme_table.networks(result)
    assert quick["real_layers"] == "int8" and quick["engine_ms"] == 1.0
    assert quick["ratios"] == {"torch": 30.0, "openvino": 10.0, "Larq Compute Engine": 40.0}
    assert exact["real_layers"] == "fp32" and exact["ratios"]["torch"] == pytest.approx(15.0)
    text = readme_table.latency([quick, exact])
    assert "| Some Core (AVX2) | leanconv | PyTorch | OpenVINO | Larq Compute Engine, 1-bit |" in text
    assert "real layers int8, 1 thread | **1.00 ms** | 30.0 ms (30.0x) |" in text
