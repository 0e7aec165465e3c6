import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanconv.nn import BinaryConv2d, BinaryLinear
from leanconv.train.flips import FlipRatio


def network():
    return nn.Sequential(nn.Conv2d(1, 3, 1), BinaryConv2d(3, 5, 1), nn.Flatten(), BinaryLinear(5, 2))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=15, max_size=15), st.lists(st.booleans(), min_size=10, max_size=10))
def test_counts_changed_signs(first, second):
    model, flips = network(), FlipRatio()
    assert flips.update(model) == {}
    with torch.no_grad():
        for weight, turned in ((model[1].weight, first), (model[3].weight, second)):
            weight.mul_(torch.where(torch.tensor(turned), -3.0, 0.5).view_as(weight))  # no weight is 0
    assert flips.update(model) == pytest.approx(
        {"all": (sum(first) + sum(second)) / 25, "1.weight": sum(first) / 15, "3.weight": sum(second) / 10}
    )
    assert set(flips.update(model).values()) == {0.0}


def test_a_zero_counts_as_plus_one():
    layer, flips = BinaryLinear(4, 1), FlipRatio()
    nn.init.zeros_(layer.weight)
    flips.update(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-0.0, 1.0, -1.0, -1e-30]]))
    assert flips.update(layer) == {"all": 0.5, "weight": 0.5}


def test_memory_survives_a_resume():
    model, flips, resumed = network(), FlipRatio(), FlipRatio()
    flips.update(model)
    saved = flips.state_dict()
    assert {name: (t.dtype, len(t)) for name, t in saved.items()} == {
        "1.weight": (torch.uint8, 2),
        "3.weight": (torch.uint8, 2),
    }
    resumed.load_state_dict({name: t.clone() for name, t in saved.items()})
    with torch.no_grad():
        model[3].weight.neg_()
    expected = flips.update(model)
    assert expected == {"all": 0.4, "1.weight": 0.0, "3.weight": 1.0} == resumed.update(model)


def test_a_network_without_binary_weights():
    flips = FlipRatio()
    assert flips.update(nn.Linear(2, 2)) == {} == flips.update(nn.Linear(2, 2))
