import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.nn import BinaryConv2d
from leanconv.train.bop import Bop

REAL = st.floats(-2, 2, width=32)


def by_hand(weights, gradients, gamma, threshold):
    """One weight at a time, in the words of the paper. Yields the weights after each step."""
    m = [np.float32(0)] * len(weights)
    for gradient in gradients:
        for i, g in enumerate(gradient):
            m[i] = np.float32(np.float32(m[i] * np.float32(1 - gamma)) + np.float32(np.float32(gamma) * np.float32(g)))
            sign = -1 if weights[i] < 0 else 1
            if abs(m[i]) > threshold and math.copysign(1, m[i]) == sign:
                weights[i] = -weights[i]
        yield list(weights)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.sampled_from([1.0, 0.5, 0.125]), st.sampled_from([0.0, 0.25, 1e-8]))
def test_against_one_weight_at_a_time(data, size, gamma, threshold):
    nonzero = REAL.filter(lambda value: value != 0)
    start = data.draw(st.lists(nonzero, min_size=size, max_size=size))
    gradients = data.draw(st.lists(st.lists(REAL, min_size=size, max_size=size), min_size=1, max_size=6))
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = Bop([weight], lr=gamma, threshold=threshold)
    for gradient, expected in zip(gradients, by_hand(list(start), gradients, gamma, threshold), strict=True):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        assert weight.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(REAL, min_size=1, max_size=8), st.data(), st.floats(0, 1))
def test_flips_only_against_the_gradient_and_keeps_magnitudes(start, data, threshold):
    weight = torch.nn.Parameter(torch.tensor(start))
    gradient = torch.tensor(data.draw(st.lists(REAL, min_size=len(start), max_size=len(start))))
    before = weight.detach().clone()
    weight.grad = gradient
    Bop([weight], lr=1.0, threshold=threshold).step()  # lr 1: the mean is the gradient
    flipped = (weight >= 0) != (before >= 0)
    pushed = torch.where(before >= 0, gradient, -gradient) > threshold
    assert torch.equal(flipped, pushed)
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)  # a flipped zero; the others keep their magnitude
    expected = torch.where(flipped & (before == 0), smallest, before.abs())
    assert torch.equal(weight.detach().abs(), expected)


def test_a_zero_flips_and_flips_back():
    weight = torch.nn.Parameter(torch.tensor([0.0, -0.0]))
    optimizer = Bop([weight], lr=1.0)
    weight.grad = torch.ones(2)
    optimizer.step()
    assert (weight < 0).all()
    weight.grad = -torch.ones(2)
    optimizer.step()
    assert (weight >= 0).all()


def test_nothing_flips_before_the_mean_passes_the_threshold():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = Bop([weight], lr=0.25, threshold=0.5)
    signs = []
    for _ in range(4):  # means 0.25, 0.4375, 0.578, ...; after the flip the gradient pushes the way the sign is
        weight.grad = torch.ones(1)
        optimizer.step()
        signs.append(weight.item())
    assert signs == [1, 1, -1, -1]


def test_trains_a_binary_convolution():
    torch.manual_seed(0)
    layer = BinaryConv2d(4, 8, 3, binarize_weight="magnitude")
    x = torch.randn(16, 4, 5, 5)
    wanted = BinaryConv2d(4, 8, 3)(x).detach()
    scale = layer.binarize_weight.scale(layer.weight).detach()
    optimizer = Bop(layer.parameters(), lr=0.02, threshold=1e-6)
    losses = []
    for _ in range(40):
        loss = (layer(x) / scale.view(-1, 1, 1) - wanted).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.25 * losses[0]
    assert torch.equal(layer.binarize_weight.scale(layer.weight), scale)


@pytest.mark.parametrize(("args", "message"), [({"lr": 2}, "adaptivity rate"), ({"threshold": -1}, "threshold")])
def test_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        Bop([torch.nn.Parameter(torch.ones(1))], **args)
