"""leanconv.bench.chains: the same chain in torch, in ONNX and packed."""

from __future__ import annotations

import numpy as np
import pytest

from leanconv.bench import chains
from leanconv.bench.chains import Layer
from leanconv.bench.networks import load_network, logits

LAYERS = (Layer(6, 6, 8), Layer(4, 8, 9, stride=2), Layer(5, 5, 4, kernel=1))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
@pytest.mark.parametrize("batch", [1, 2])
def test_torch_and_onnx_run_the_same_chain(layer, batch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    for chain in chains.chains(layer):
        chains.save(chain, tmp_path / "chain.json")
        chains.save_onnx(chain, batch, tmp_path / "chain.onnx")
        shown = chains.maps(chain, batch)
        expected = logits(load_network(tmp_path / "chain.json"), shown)
        session = onnxruntime.InferenceSession(str(tmp_path / "chain.onnx"), providers=["CPUExecutionProvider"])
        (given,) = session.run(None, {"map0": shown})
        assert given.shape == (batch, chain[-1].out_channels, chain[-1].out_size, chain[-1].out_size)
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
        assert 0.2 < expected.std() < 5  # maps keep their spread: int8 has something to quantise


def test_multiply_adds_are_those_of_the_network():
    count = {Layer(64, 64, 56): 4, Layer(128, 128, 28): 3, Layer(256, 256, 14): 3, Layer(512, 512, 7): 3}
    count |= {Layer(64, 128, 56, stride=2): 1, Layer(128, 256, 28, stride=2): 1, Layer(256, 512, 14, stride=2): 1}
    assert sum(layer.macs * times for layer, times in count.items()) == 1_676_279_808


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_binary_chains_compile_to_as_many_convolutions(layer):
    import torch

    import leanconv

    chain = (layer,) if layer.stride > 1 else (layer,) * 3
    shown = torch.from_numpy(chains.maps(chain, 2))
    program = leanconv.compile(chains.binary_network(chain), shown)
    assert [op.kind for op in program.ops].count("binary_conv") == len(chain)
