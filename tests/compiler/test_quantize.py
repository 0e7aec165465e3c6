"""Real-valued layers in int8: what the compiler writes, and how far it is from PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import leanconv.nn as lnn
from leanconv import engine
from leanconv.compiler import CompileError, compile, compile_verified
from leanconv.compiler.quantize import best_range, round_weights
from leanconv.engine import reference
from leanconv.preprocess import Preprocessing, normalize
from leanconv.program import ProgramError
from tests.compiler.checks import Call, settle

RULES = {"input_size": [3, 24, 24], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PICTURES = np.random.default_rng(0).integers(0, 256, (12, 24, 24, 3), dtype=np.uint8)


def floats(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(normalize(pictures, Preprocessing.from_dict(RULES)))


def outputs(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(x).numpy()


class Residual(nn.Module):
    """A binary network in small: stem with pooling, a binary layer with a 1x1 shortcut, a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 20, 7, 2, 3, bias=False), nn.BatchNorm2d(20)
        self.conv2 = lnn.BinaryConv2d(20, 24, 3, padding=1)
        self.shortcut = nn.Conv2d(20, 24, 1)
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)), 3, 2, 1)
        x = self.conv2(x) + self.shortcut(x)
        return self.fc(x.mean((2, 3)))


def test_every_real_layer_of_a_binary_network():
    torch.manual_seed(0)
    model = settle(Residual())
    program, verification = compile_verified(
        model, floats(PICTURES[:2]), preprocessing=RULES, real_layers="int8", calibration=PICTURES
    )
    assert [op.kind for op in program.ops] == [
        "int8_conv", "max_pool", "binary_conv", "int8_conv", "global_avg_pool", "int8_conv",
    ]  # fmt: skip
    assert [op.name for op in program.ops if op.kind == "int8_conv"] == ["conv1", "shortcut", "fc"]
    assert program.values[program.inputs[0].value].zero == [124, 116, 104]  # 255 * mean
    assert [s.kind for s in program.ops[4].steps] == ["quantize"]  # the real value behind it is read by nobody
    assert all(t.dtype == np.int8 for n, t in program.tensors.items() if n.endswith("weight") and n != "conv2.weight")
    assert program.provenance["real_layers"] == "int8"
    found = verification.quantization
    assert found.layers == ["conv1", "shortcut", "fc"] and found.kept == {} and found.pictures == 12
    assert 0 <= found.same_class <= 12 and 0 < found.largest_error < 0.5
    assert "int8: 3 of 3 real-valued layers" in str(verification)
    assert found.before.ops[0].kind == "conv" and found.before.values[0].type == "real"  # as it was

    model_int8 = engine.Model(program.to_bytes())
    np.testing.assert_allclose(model_int8(PICTURES), reference.run(program, [PICTURES])[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ProgramError, match="takes uint8 pictures"):
        model_int8(floats(PICTURES).numpy())


def test_without_signs_the_error_is_that_of_8_bits():
    torch.manual_seed(1)
    model = settle(
        nn.Sequential(
            nn.Conv2d(3, 32, 5, 2, 2), nn.BatchNorm2d(32), nn.PReLU(32), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(),
            nn.AvgPool2d(2), nn.Conv2d(16, 16, 3, stride=2, dilation=2, padding=2), nn.Flatten(), nn.Linear(144, 7),
        )
    )  # fmt: skip
    program = compile(model, floats(PICTURES[:2]), preprocessing=RULES, real_layers="int8", calibration=PICTURES)
    assert sum(op.kind == "int8_conv" for op in program.ops) == 4
    fresh = np.random.default_rng(5).integers(0, 256, (9, 24, 24, 3), dtype=np.uint8)
    expected = outputs(model, floats(fresh))
    error = engine.Model(program.to_bytes())(fresh) - expected
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 0.03


def test_the_first_layer_is_exact_but_for_its_weights():
    """With weights that are multiples of their scale, only the half grey level outside the picture is left."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    std = torch.tensor(RULES["std"])[None, :, None, None]
    q = torch.from_numpy(np.random.default_rng(2).integers(-127, 128, (4, 3, 3, 3)).astype(np.float32))
    q[:, 0, 0, 0] = 127
    with torch.no_grad():
        model[0].weight.copy_(q * std * 0.002)
    program = compile(model, floats(PICTURES[:2]), preprocessing=RULES, real_layers="int8", calibration=PICTURES)
    expected, got = outputs(model, floats(PICTURES)), engine.Model(program.to_bytes())(PICTURES)
    np.testing.assert_allclose(got[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], rtol=1e-4, atol=1e-3)
    half_level = 0.5 * np.abs(q.numpy()).sum(axis=(1, 2, 3)) * 0.002 / 255
    assert (np.abs(got - expected).max(axis=(0, 2, 3)) <= half_level + 1e-3).all()


def test_float_calibration_leaves_the_input_as_it_is():
    torch.manual_seed(2)
    model = settle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    x = torch.randn(6, 3, 9, 9)
    program = compile(model, x[:1], real_layers="int8", calibration=x)
    assert [op.kind for op in program.ops] == ["elementwise", "int8_conv"]
    assert program.values[program.inputs[0].value].type == "real"
    got, expected = engine.Model(program.to_bytes())(x.numpy()), outputs(model, x)
    assert np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)) < 0.03


def test_maps_that_concatenation_makes_and_that_others_read():
    torch.manual_seed(3)

    def both(x, a, b, c):
        y = torch.cat([a(x), b(x)], 1)
        return c(y) + y

    model = settle(Call(both, nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Conv2d(5, 5, 3, padding=1)))
    x = torch.randn(4, 4, 8, 8)
    program = compile(model, x[:1], real_layers="int8", calibration=(x,))
    assert [op.kind for op in program.ops].count("int8_conv") == 3
    assert sum(s.kind == "quantize" for op in program.ops for s in op.steps) == 2  # one for both readers of the input
    got, expected = engine.Model(program.to_bytes())(x.numpy()), outputs(model, x)
    assert np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)) < 0.03


def test_several_inputs_by_name():
    torch.manual_seed(4)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4)

        def forward(self, left, right):
            return self.a(left) + self.b(right)

    model, x = Two().eval(), {"left": torch.randn(5, 6), "right": torch.randn(5, 3)}
    program = compile(model, x, real_layers="int8", calibration=x)
    assert [op.kind for op in program.ops] == ["elementwise", "elementwise", "int8_conv", "int8_conv"]
    with pytest.raises(CompileError, match="calibration has inputs"):
        compile(model, x, real_layers="int8", calibration={"left": x["left"]})
    with pytest.raises(CompileError, match="1 inputs, the network 2"):
        compile(model, x, real_layers="int8", calibration=x["left"])
    with pytest.raises(CompileError, match="different or empty batches"):
        compile(model, x, real_layers="int8", calibration=(x["left"], x["right"][:2]))


def test_layers_that_stay_in_fp32():
    torch.manual_seed(5)
    model = settle(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1)))
    x = torch.randn(4, 4, 8, 8)
    program, verification = compile_verified(model, x[:1], real_layers="int8", calibration=x)
    assert [op.kind for op in program.ops] == ["conv", "int8_conv"]
    assert verification.quantization.kept == {"0": "4 groups"}
    assert "int8: 1 of 2 real-valued layers; 0 stays in fp32 (4 groups)" in str(verification)


def test_nothing_to_quantise():
    x = torch.randn(2, 4, 6, 6)
    with pytest.raises(CompileError, match=r"no layer .* in int8 \(0: 4 groups\); compile it with fp32 layers"):
        compile(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), x, real_layers="int8", calibration=x)
    with pytest.raises(CompileError, match="it has no real-valued layer"):
        compile(nn.Sequential(lnn.BinaryConv2d(4, 4, 3)), x, real_layers="int8", calibration=x)


def stored(program) -> dict[str, list[str]]:
    """How each operator's stores are typed."""
    return {
        op.name: [program.values[s.value].type for s in op.steps if s.kind == "store"]
        for op in program.ops
        if any(s.kind == "store" for s in op.steps)
    }


def test_maps_in_bf16():
    torch.manual_seed(6)
    options = {"preprocessing": RULES, "real_layers": "int8", "calibration": PICTURES}
    model = settle(Residual())
    program, verification = compile_verified(model, floats(PICTURES[:2]), real_maps="bf16", **options)
    assert stored(program) == {"conv1": ["real"], "conv2": ["bf16"], "shortcut": ["bf16"], "fc": ["real"]}
    assert program.provenance["real_maps"] == "bf16" and verification.quantization.maps_bf16 == 2
    assert "3 of 3 real-valued layers; 2 real maps in bf16; the class of fp32 on" in str(verification)
    plain = compile(model, floats(PICTURES[:2]), **options)
    assert "real_maps" not in plain.provenance and all(v.type != "bf16" for v in plain.values)
    wide, narrow = (engine.Model(p.to_bytes())(PICTURES) for p in (plain, program))
    assert 0 < np.abs(wide - narrow).max() < 0.1 * np.abs(wide).max()


def test_maps_that_stay_in_fp32():
    """Those that a layer in fp32, a concatenation or the caller reads."""
    torch.manual_seed(7)

    def read(x, a, b, c, depthwise):
        x, y = torch.relu(a(x)), torch.relu(b(x))
        z = c(torch.cat([x, y], 1)) + x
        return depthwise(y), torch.relu(z + 1) + z

    layers = [nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(12, 6, 1), nn.Conv2d(6, 6, 3, groups=6)]
    model, x = settle(Call(read, *layers)), torch.randn(4, 4, 8, 8)
    program = compile(model, x[:1], real_layers="int8", real_maps="bf16", calibration=x)
    assert stored(program) == {
        "parts.0": ["real"],  # joined
        "parts.1": ["real"],  # joined, and read by the depthwise layer
        "parts.2": ["bf16", "bf16"],  # z and what is added to it
        "parts.3": ["real"],
        "add_2": ["real"],
    }


def test_missing_and_foreign_calibration():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 6, 6)
    with pytest.raises(CompileError, match="give calibration=pictures"):
        compile(model, x, real_layers="int8")
    with pytest.raises(CompileError, match="choose fp32 or int8"):
        compile(model, x, real_layers="int4", calibration=x)  # type: ignore[arg-type]
    with pytest.raises(CompileError, match="real_maps is 'fp16'; choose fp32 or bf16"):
        compile(model, x, real_layers="int8", real_maps="fp16", calibration=x)  # type: ignore[arg-type]
    with pytest.raises(CompileError, match="go with int8 layers: give real_layers='int8'"):
        compile(model, x, real_maps="bf16")
    with pytest.raises(CompileError, match="float64"):
        compile(model, x, real_layers="int8", calibration=x.double())
    with pytest.raises(CompileError, match="not finite"):
        compile(model, x, real_layers="int8", calibration=x * np.nan, verify=False)
    with pytest.raises(ProgramError, match="given was"):
        compile(model, x, real_layers="int8", calibration=x[:, :2])


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_rounded_weights_are_near(seed, size):
    weight = np.random.default_rng(seed).normal(size=(5, 3, 2, 4)) * size
    q, scale = round_weights(weight)
    plain = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    error = np.square(weight - q * scale[:, None, None, None]).sum()
    assert q.dtype == np.int8 and error <= np.square(weight - np.rint(weight / plain) * plain).sum() * (1 + 1e-9)


@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_ranges_hold_zero_and_lose_little(seed, shift, size):
    x = ((np.random.default_rng(seed).normal(size=500) + shift) * size).astype(np.float32)
    found = best_range(float(x.min()), float(x.max()), x)
    assert 0 <= found.zero <= 255 and found.factor > 0
    restored = np.clip(np.rint(x * found.factor), -found.zero, 255 - found.zero) / found.factor
    span = max(x.max(), 0) - min(x.min(), 0)
    assert np.sqrt(np.mean((restored - x) ** 2)) <= span / 255
    assert best_range(0.0, 0.0, np.zeros(3, np.float32)).factor == 1.0
