"""What is fused with what, and in which order the operators run."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import leanconv.nn as lnn
from leanconv.compiler import compile
from leanconv.program import infer_sizes
from tests.compiler.checks import Call, check, kinds, settle, steps

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Block(nn.Module):
    """Bi-Real's block: sign, binary convolution, batch norm, shortcut."""

    def __init__(self, channels):
        super().__init__()
        self.conv = lnn.BinaryConv2d(channels, channels, 3, padding=1, binarize_weight="magnitude", bias=True)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.bn(self.conv(x)) + x


def test_bireal_blocks_are_one_operator_each():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Block(8), Block(8))
    program = check(model, torch.randn(2, 3, 9, 9))
    assert kinds(program) == ["conv", "binary_conv", "binary_conv"]
    assert steps(program, 0) == ["affine", "store", "sign"]
    assert steps(program, 1) == ["affine", "add", "store", "sign"]  # scale, bias and batch norm are one affine
    assert steps(program, 2) == ["affine", "add", "store"]
    assert [op.name for op in program.ops] == ["0", "2.conv", "3.conv"]
    assert [op.parameters_real for op in program.ops] == [8 * 27 + 8 + 16, 8 + 16, 8 + 16]


def test_affines_fold_in_double_precision_and_round_once():
    model = settle(nn.Sequential(Block(5)))
    program = compile(model, torch.zeros(1, 5, 4, 4))
    op = next(op for op in program.ops if op.kind == "binary_conv")
    block, affine = model[0], op.steps[0]
    w, bn = block.conv.weight.detach().numpy(), block.bn
    gain = bn.weight.detach().numpy().astype(np.float64) / np.sqrt(bn.running_var.numpy().astype(np.float64) + bn.eps)
    scale = lnn.weight_scale(block.conv.weight.detach(), "magnitude").numpy().astype(np.float64)
    np.testing.assert_allclose(scale, np.abs(w).mean((1, 2, 3)), rtol=1e-6)
    bias = block.conv.bias.detach().numpy().astype(np.float64)
    shift = bn.bias.detach().numpy().astype(np.float64) - bn.running_mean.numpy().astype(np.float64) * gain
    np.testing.assert_array_equal(program.tensors[affine.scale], (scale * gain).astype(np.float32))
    np.testing.assert_allclose(program.tensors[affine.bias], (bias * gain + shift).astype(np.float32), rtol=1e-6)


def test_the_addition_joins_the_operand_that_is_computed_last():
    class Down(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.bn = lnn.BinaryConv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
            self.pool, self.shortcut = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), nn.Conv2d(4, 8, 1)

        def forward(self, x):
            return self.bn(self.main(x)) + self.shortcut(self.pool(x))

    program = check(Down(), torch.randn(2, 4, 9, 9))
    assert kinds(program) == ["elementwise", "binary_conv", "avg_pool", "conv"]
    assert steps(program, 1) == ["affine", "store"] and steps(program, 3) == ["affine", "add", "store"]
    assert program.inputs[0].height is None  # both branches round odd sizes the same way


def test_batch_norm_before_sign_becomes_part_of_the_sign():
    """BinaryDenseNet's layer: several batch norms of one concatenation need one operator and no extra map."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.bns = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
            self.convs = nn.ModuleList(lnn.BinaryConv2d(8, 5, 3, padding=1) for _ in range(2))

        def forward(self, x):
            x = torch.cat([x, -x], 1)
            return torch.cat([x, *(c(b(x)) for b, c in zip(self.bns, self.convs, strict=True))], 1)

    program = check(Layer(), torch.randn(2, 4, 5, 5))
    assert kinds(program) == ["elementwise", "concat", "elementwise", "binary_conv", "binary_conv", "concat"]
    assert steps(program, 2) == ["sign", "sign"]
    assert all(s.scale is not None and s.bias is not None for s in program.ops[2].steps)


def test_equal_signs_are_packed_once():
    model = Call(lambda x, a, b, c: a(x) + b(x) + c(x), *(lnn.BinaryConv2d(4, 4, 3, padding=1) for _ in range(3)))
    program = check(model, torch.randn(2, 4, 5, 5))
    assert sum(v.type == "bits" for v in program.values) == 1
    assert kinds(program) == ["elementwise", "binary_conv", "binary_conv", "binary_conv"]


def test_a_value_with_several_readers_is_stored_where_it_is():
    def forward(x, conv, relu):
        y = conv(x)
        z = relu(y)
        return z + 1, y

    program = check(Call(forward, nn.Conv2d(3, 4, 1), nn.ReLU()), torch.randn(2, 3, 4, 4))
    assert kinds(program) == ["conv"]
    assert steps(program, 0) == ["affine", "store", "clip", "affine", "store"]


def test_an_operand_from_a_later_operator_moves_the_addition_behind_it():
    def forward(x, a, b):
        early, late = a(x), b(a(x) * 2)
        return (early.relu() + late).clamp(max=1)

    program = check(Call(forward, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), torch.randn(2, 3, 4, 4))
    assert kinds(program) == ["conv", "conv", "conv"]
    assert "add" in steps(program, 2)


def test_squeeze_excite_gate():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = lnn.BinaryConv2d(8, 8, 3, padding=1)
            self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

        def forward(self, x):
            y = self.conv(x)
            g = torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True)))))
            return g * y + x

    program = check(Gate(), torch.randn(2, 8, 6, 6))
    assert kinds(program) == ["elementwise", "binary_conv", "global_avg_pool", "conv", "conv", "elementwise"]
    assert steps(program, 5) == ["mul", "add", "store"]


def test_outputs_have_names_and_may_be_shared():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return {"boxes": self.a(x), "more": (self.b(x), x), "same": [x.relu(), x.relu()]}

    program = check(Heads(), torch.randn(2, 3, 5, 5))
    assert [o.name for o in program.outputs] == ["boxes", "more.0", "more.1", "same.0", "same.1"]
    assert [o.name for o in check(Call(lambda x: (x + 1, x.mean((2, 3)))), torch.randn(2, 3, 5, 5)).outputs] == [
        "output0",
        "output1",
    ]
    assert [o.name for o in check(Call(lambda x: [x + 1]), torch.randn(2, 3, 5, 5)).outputs] == ["output"]


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)

        def forward(self, picture, facts):
            return self.conv(picture) * self.fc(facts)[:, :, None, None]

    x = (torch.randn(2, 3, 6, 6), torch.randn(2, 5))
    program = check(Two(), *x)
    assert [(i.name, i.dims) for i in program.inputs] == [("picture", 4), ("facts", 2)]
    by_name = compile(Two().eval(), {"facts": x[1], "picture": x[0]})
    assert [(i.name, i.dims) for i in by_name.inputs] == [("picture", 4), ("facts", 2)]


def test_shared_layers_count_their_parameters_once():
    program = check(Call(lambda x, c: c(c(x)), nn.Conv2d(3, 3, 1)), torch.randn(2, 3, 4, 4))
    assert [op.parameters_real for op in program.ops] == [12, 0]
    assert program.ops[0].name != program.ops[1].name


class Random(nn.Module):
    """A network from a list of choices: every choice takes earlier maps of the same shape and makes a new one."""

    def __init__(self, choices):
        super().__init__()
        self.choices = choices
        self.layers = nn.ModuleList(self.layer(kind) for kind, _, _ in choices)

    @staticmethod
    def layer(kind):
        return {
            "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
            "binary": lambda: lnn.BinaryConv2d(4, 4, 3, padding=1, binarize_weight="magnitude"),
            "bn": lambda: nn.BatchNorm2d(4),
            "prelu": lambda: nn.PReLU(4),
            "relu": nn.ReLU,
            "pool": lambda: nn.MaxPool2d(3, 1, 1),
            "halve": lambda: nn.Conv2d(8, 4, 1),
            "sigmoid": nn.Sigmoid,
        }.get(kind, nn.Identity)()

    def forward(self, x):
        maps = [x]
        for (kind, first, second), layer in zip(self.choices, self.layers, strict=True):
            a, b = maps[first % len(maps)], maps[second % len(maps)]
            if kind == "add":
                maps.append(a + b)
            elif kind == "mul":
                maps.append(a * b * 0.5)
            elif kind == "mean":
                maps.append(torch.stack([a, b, x]).mean(0))
            elif kind == "gate":
                maps.append(a * torch.sigmoid(b.mean((2, 3), keepdim=True)))
            elif kind == "halve":
                maps.append(layer(torch.cat([a, b], 1)))
            else:
                maps.append(layer(a))
        return maps[-1], maps[len(maps) // 2]


KINDS = ["conv", "binary", "bn", "prelu", "relu", "pool", "add", "mul", "mean", "gate", "halve", "sigmoid"]
CHOICES = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CHOICES)
def test_random_networks(choices):
    torch.manual_seed(1)
    model = settle(Random(choices))
    program = compile(model, torch.randn(2, 4, 5, 6))  # verifies every operator against PyTorch and the native engine
    written = [False] * len(program.values)
    for i in program.inputs:
        written[i.value] = True
    for op in program.ops:
        assert all(written[v] for v in op.inputs)
        for value in [op.output] * (op.output is not None):
            assert not written[value]
            written[value] = True
        for step in op.steps:
            if step.kind in ("store", "sign"):
                assert not written[step.value]
                written[step.value] = True
            elif step.value is not None:
                assert written[step.value]
    assert all(written)
    infer_sizes(program, {i.value: (5, 6) for i in program.inputs})
