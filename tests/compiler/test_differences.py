import numpy as np
import pytest
import torch
from torch import nn

from leanconv.compiler import differences
from leanconv.nn import BinaryConv2d


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), BinaryConv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)]
    return nn.Sequential(*layers, BinaryConv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def test_equal_signs_leave_nothing_to_explain(model):
    pictures = torch.randn(3, 3, 6, 6)
    found = differences.explain_differences(model, pictures[:2], list(pictures))
    assert found == [differences.Difference()] * 3 and found[0].explained


@pytest.mark.parametrize("layer", [0, 1])
def test_the_first_flipped_sign_is_found(model, layer, monkeypatch):
    picture = torch.randn(3, 6, 6)
    real = differences._bits
    names = []

    def flipped(program, array):
        signs = {value: bits.copy() for value, bits in real(program, array).items()}
        ops = [(op.name, s.value) for op in program.ops for s in op.steps if s.kind == "sign"]
        names.extend(name for name, _ in ops)
        for _, value in ops[layer:]:
            signs[value][0, 2, 3, 1] *= -1
        return signs

    monkeypatch.setattr(differences, "_bits", flipped)
    (found,) = differences.explain_differences(model, picture[None].repeat(2, 1, 1, 1), [picture])
    with torch.no_grad():
        before = model[: 2 + 2 * layer](picture[None])
    assert found.layer == names[layer] and found.signs == 1
    assert found.distance == pytest.approx(abs(float(before[0, 1, 2, 3])), rel=1e-5)
    assert found.scale == pytest.approx(float(before.square().mean().sqrt()), rel=1e-5)
    assert not found.explained and differences.Difference("x", 1, 1e-5, 1.0).explained


def test_signs_are_those_of_the_engine(model):
    from leanconv.compiler import lowered

    x = torch.randn(1, 3, 6, 6)
    program = lowered(model, torch.cat([x, x]))[1].program
    bits = differences._bits(program, x.numpy())
    with torch.no_grad():
        expected = (model[:2](x) >= 0).numpy().transpose(0, 2, 3, 1) * 2 - 1
    first = next(s.value for op in program.ops for s in op.steps if s.kind == "sign")
    assert np.array_equal(bits[first], expected)
