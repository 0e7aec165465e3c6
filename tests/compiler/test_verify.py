"""Verification finds injected faults, names the layer, and accepts signs that rounding decides."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import leanconv.nn as lnn
from leanconv.compiler import CompileError, compile_verified
from leanconv.compiler.emit import fuse_graph
from leanconv.compiler.export import as_arguments, export_model
from leanconv.compiler.lower import Lowering
from leanconv.compiler.verify import verify_compiled
from tests.compiler.checks import settle

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv1, self.bn1 = lnn.BinaryConv2d(8, 8, 3, padding=1, binarize_weight="magnitude"), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = lnn.BinaryConv2d(8, 12, 3, binarize_input="rsign"), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)
        nn.init.constant_(self.conv2.binarize_input.shift, 0.3)

    def forward(self, x):
        x = self.stem(x)
        x = self.bn1(self.conv1(x)) + x
        return self.head(self.bn2(self.conv2(x)).relu().mean((2, 3)))


def lowered(model, x):
    args, kwargs = as_arguments(model, x)
    exported = export_model(model, args, kwargs, free=True)
    return exported, fuse_graph(Lowering(exported).run())


@pytest.fixture(scope="module")
def parts():
    model = settle(Net())
    return model, *lowered(model, torch.randn(1, 3, 10, 10))


def test_a_faithful_program_verifies(parts):
    model, exported, fused = parts
    result = verify_compiled(model, exported, fused)
    assert result.operators == 5 and result.signs == 2 * 2 * 8 * 8 * 8
    assert result.largest_difference < 1e-4 * result.largest_output + 1e-4
    assert "integer sums exact" in str(result) and "\n" not in str(result)


def _op(program, kind, index=0):
    return [op for op in program.ops if op.kind == kind][index]


def _flip_weight(program):
    tensor = program.tensors[_op(program, "binary_conv", 1).tensors["weight"]]
    tensor[3, 1, 1, 0] ^= 4
    return "conv2"


def _shift_bias(program):
    tensor = program.tensors[_op(program, "binary_conv").steps[0].bias]
    tensor[2] += 1e-2
    return "conv1"


def _move_threshold(program):
    step = next(s for op in program.ops for s in op.steps if s.kind == "sign" and s.bias)
    program.tensors[step.bias][0] += 0.05
    return "conv1"  # its map is what conv2 takes the sign of


def _wrong_stride(program):
    _op(program, "binary_conv").attrs["pad_value"] = 1
    return "conv1"


def _lost_step(program):
    op = _op(program, "binary_conv", 1)
    op.steps = [s for s in op.steps if s.kind != "clip"]
    return "conv2"


def _scaled_head(program):
    program.tensors[_op(program, "linear").tensors["weight"]] *= 1.01
    return "head"


def _real_weight(program):
    program.tensors[_op(program, "conv").tensors["weight"]][0, 0, 0, 0] += 0.01
    return "stem"


@pytest.mark.parametrize(
    "fault", [_flip_weight, _shift_bias, _move_threshold, _wrong_stride, _lost_step, _scaled_head, _real_weight]
)
def test_an_injected_fault_is_found_and_its_layer_named(parts, fault):
    model, exported, fused = parts
    broken = copy.copy(fused)
    broken.program = copy.deepcopy(fused.program)
    layer = fault(broken.program)
    with pytest.raises(CompileError, match=rf"verification failed at layer {layer} "):
        verify_compiled(model, exported, broken)


def test_signs_that_rounding_decides_are_accepted_and_counted():
    """Many inputs hit the threshold of batch norm and sign exactly; PyTorch and one folded affine round differently."""

    class Edge(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.first = lnn.BinaryConv2d(9, 64, 3, binarize_weight="magnitude")
            self.bn = nn.BatchNorm2d(64)
            self.second = lnn.BinaryConv2d(64, 4, 1)

        def forward(self, x):
            return self.second(self.bn(self.first(x)))

    model = settle(Edge())
    with torch.no_grad():  # the threshold lies on an integer sum that occurs
        scale = lnn.weight_scale(model.first.weight, "magnitude")
        model.bn.running_mean.copy_(scale * 3)
        model.bn.bias.zero_()
    _, result = compile_verified(model, torch.randn(1, 9, 20, 20))
    assert result.flipped > 0
    assert 0 <= result.worst_flip <= 1e-4


def test_a_network_that_changes_under_export_is_refused():
    class TwoFaced(nn.Module):
        def forward(self, x):
            return x * (2.0 if torch.compiler.is_exporting() else 3.0)

    with pytest.raises(CompileError, match="changed the network"):
        compile_verified(TwoFaced(), torch.randn(2, 3, 4, 4))


def test_a_faulty_engine_is_found(parts, monkeypatch):
    from leanconv.compiler import native

    model, exported, fused = parts
    true_run = native.run_native

    def faulty(program, inputs):
        results = true_run(program, inputs)
        name = (
            next(n for n in results if results[n].ndim == 4 and results[n].shape[1] == 12) if len(results) > 1 else None
        )
        if name is not None:
            results[name] = results[name] + np.float32(1e-6) * np.abs(results[name]).max()
        return results

    monkeypatch.setattr(native, "run_native", faulty)
    with pytest.raises(CompileError, match=r"layer conv2 \(binary_conv\): the native engine"):
        verify_compiled(model, exported, fused)


def test_provenance_classes_and_preprocessing():
    rules = {"input_size": [3, 4, 4], "mean": [0.5] * 3, "std": [0.5] * 3}
    program, _ = compile_verified(
        nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4), preprocessing=rules, classes=("a", "b"), provenance={"seed": 7}
    )
    assert program.preprocessing == rules and program.classes == ["a", "b"]
    assert program.provenance["model"] == "Conv2d" and program.provenance["seed"] == 7
    assert program.provenance["torch"] == str(torch.__version__)


def test_source_date_epoch_makes_the_program_reproducible(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    model = settle(Net())
    digests = {compile_verified(model, torch.zeros(1, 3, 8, 8), verify=False)[0].digest() for _ in range(2)}
    assert len(digests) == 1
