"""ONNX files hold standard operators, run at any batch in onnxruntime and agree with PyTorch."""

import numpy as np
import pytest
import torch
from torch import nn

import leanconv.nn as lnn
from leanconv.compiler import CompileError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from leanconv.onnx_export import export_onnx  # noqa: E402

torch.set_num_threads(1)


class Net(nn.Module):
    """Every marker once, exact zero padding and constant padding, a gate, two outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a = lnn.BinaryConv2d(8, 8, 3, padding=1, binarize_weight="magnitude", bias=True)
        self.b = lnn.BinaryConv2d(8, 8, 3, padding="same", pad_value=-1, groups=2, dilation=2)
        self.up = lnn.BinaryConvTranspose2d(8, 4, 2, stride=2, binarize_weight="magnitude")
        self.dense, self.head = lnn.BinaryLinear(8, 6), nn.Linear(6, 5)
        with torch.no_grad():
            self.a.weight[0, 0] = 0.0  # sign(0) = +1 for weights
            self.bn.bias.uniform_(-1, 1)

    def forward(self, x):
        x = self.bn(self.stem(x))
        y = self.b(self.a(x)) + x
        return {"classes": self.head(self.dense(y.mean((2, 3)))), "mask": self.up(y)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    model = Net().eval()
    return model, path, export_onnx(model, torch.randn(1, 3, 8, 8), path)


def test_agrees_with_pytorch_at_other_batches(exported):
    model, path, result = exported
    assert result.size == path.stat().st_size
    assert result.largest_difference is not None and result.largest_difference < 1e-4
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            expected = model(x)
        got = session.run(["classes", "mask"], {"x": x.numpy()})
        for ours, name in zip(got, ("classes", "mask"), strict=True):
            np.testing.assert_allclose(ours, expected[name].numpy(), rtol=1e-4, atol=1e-4)


def test_standard_operators_and_materialised_signs(exported):
    model, path, _ = exported
    graph = onnx.load(path).graph
    assert {n.domain for n in graph.node} <= {"", "ai.onnx"}
    assert [i.name for i in graph.input] == ["x"] and [o.name for o in graph.output] == ["classes", "mask"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    signs = [a for a in arrays.values() if a.size > 1 and set(np.unique(a)) == {-1.0, 1.0}]
    assert sorted(a.size for a in signs) == sorted(m.weight.numel() for m in (model.a, model.b, model.up, model.dense))
    latent = model.a.weight.detach().numpy()
    assert not any(a.shape == latent.shape and np.array_equal(a, latent) for a in arrays.values())


def test_sign_of_zero_in_onnxruntime(tmp_path):
    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = lnn.BinaryConv2d(2, 2, 1)
            nn.init.ones_(self.conv.weight)

        def forward(self, x):
            return self.conv(x)

    path = tmp_path / "zero.onnx"
    export_onnx(Zero().eval(), torch.randn(2, 2, 2, 2), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.zeros((1, 2, 2, 2), np.float32)
    assert np.array_equal(session.run(None, {"x": x})[0], np.full((1, 2, 2, 2), 2.0, np.float32))
    assert np.array_equal(session.run(None, {"x": -x})[0], np.full((1, 2, 2, 2), 2.0, np.float32))


def test_several_inputs_by_name(tmp_path):
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b, a - b

    path = tmp_path / "two.onnx"
    export_onnx(Two(), {"b": torch.randn(2, 3), "a": torch.randn(2, 3)}, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    a, b = np.ones((4, 3), np.float32), np.full((4, 3), 3.0, np.float32)
    got = session.run(["output0", "output1"], {"a": a, "b": b})
    assert np.array_equal(got[0], a + b) and np.array_equal(got[1], a - b)


def test_a_wrong_file_is_not_written(tmp_path, monkeypatch):
    from leanconv import onnx_export

    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    true_run = onnx_export._run
    monkeypatch.setattr(onnx_export, "_run", lambda *a: [r + 1 for r in true_run(*a)])
    with pytest.raises(CompileError, match="differs from PyTorch"):
        export_onnx(nn.Conv2d(3, 2, 1).eval(), torch.randn(2, 3, 4, 4), path)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_flips_by_rounding_are_explained(tmp_path, monkeypatch):
    """A sign whose input is a rounding error away from 0 may differ; a sign far from 0 may not."""
    from leanconv import onnx_export

    true_run = onnx_export._run

    def nudged(choose):
        def run(data, names, inputs):
            results = true_run(data, names, inputs)
            if len(results) > 1:  # with the inputs of the signs
                flat = results[1].reshape(-1)
                chosen = choose(np.abs(flat))
                flat[chosen] = -flat[chosen]
            return [results[0] + 1, *results[1:]]

        return run

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), lnn.BinaryConv2d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 40, 40)
    monkeypatch.setattr(onnx_export, "_run", nudged(np.argmin))
    assert export_onnx(model, x, tmp_path / "a.onnx").flipped_signs == 2  # one in each of the two batches compared
    monkeypatch.setattr(onnx_export, "_run", nudged(np.argmax))
    with pytest.raises(CompileError, match="more than rounding"):
        export_onnx(model, x, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()
