"""The examples run and show what their headers say."""

import importlib.util
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_custom_model(tmp_path, capsys):
    pytest.importorskip("sklearn")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        path = tmp_path / "custom.lconv"
        result = load("custom_model").main(["--epochs", "3", "--out", str(path)])
    finally:
        torch.set_num_threads(threads)
    assert result["agreement"] == 1.0
    assert result["digit_top1"] > 0.85 and result["even_top1"] > 0.85
    assert result["bytes"] == path.stat().st_size
    assert "integer sums exact" in capsys.readouterr().out
