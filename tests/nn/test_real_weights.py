"""Latent weights used as real ones: the layers then are PyTorch's, on binary activations."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leanconv.compiler import CompileError
from leanconv.compiler import compile as compile_model
from leanconv.nn import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryConvTranspose2d,
    BinaryLinear,
    RealWeightsError,
    real_weights,
    sign,
)

LAYERS = {
    "conv2d": (BinaryConv2d(4, 6, 3, padding=1, bias=True), (2, 4, 7, 5), F.conv2d, {"padding": 1}),
    "magnitude": (
        BinaryConv2d(4, 6, 3, stride=2, groups=2, binarize_weight="magnitude"),
        (2, 4, 7, 5),
        F.conv2d,
        {"stride": 2, "groups": 2},
    ),
    "conv1d": (BinaryConv1d(4, 6, 3, binarize_weight="magnitude_trained"), (2, 4, 9), F.conv1d, {}),
    "transpose": (
        BinaryConvTranspose2d(4, 6, 2, stride=2, binarize_weight="magnitude"),
        (2, 4, 3, 3),
        F.conv_transpose2d,
        {"stride": 2},
    ),
    "linear": (BinaryLinear(4, 6, bias=True, binarize_weight="magnitude"), (3, 4), F.linear, {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_as_a_float_layer_on_signs(name):
    layer, shape, function, args = copy.deepcopy(LAYERS[name])
    with torch.no_grad():
        layer.weight.mul_(9)  # weights beyond the clip of the binariser too
    assert layer.weight.abs().max() > 1
    x = torch.randn(shape)
    binary = layer(x)
    assert real_weights(layer, True) == 1
    assert not torch.allclose(layer(x), binary)
    weight = layer.weight.detach().clone().requires_grad_()
    expected = function(sign(x), weight, layer.bias, **args)
    torch.testing.assert_close(layer(x), expected)
    upstream = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, weight, upstream)
    (measured,) = torch.autograd.grad(layer(x), layer.weight, upstream)
    torch.testing.assert_close(measured, gradient)
    assert real_weights(layer, False) == 1
    assert torch.equal(layer(x), binary)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), BinaryConv2d(4, 4, 3, binarize_weight="magnitude"), nn.Flatten(), nn.Linear(16, 2)
    )


def test_counts_layers_and_leaves_no_trace_in_the_state_dict():
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert real_weights(model, True) == 1 and real_weights(nn.Linear(2, 2), True) == 0
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 6, 6)
    assert not torch.allclose(fresh(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x)), "a copy keeps the switch"


def test_export_and_packing_are_refused():
    model = network().eval()
    x = torch.randn(2, 1, 6, 6)
    real_weights(model, True)
    with pytest.raises(RealWeightsError, match=r"real_weights\(model, False\)"):
        torch.export.export(model, (x,), strict=False)
    with pytest.raises(CompileError, match="use their latent weights as real ones"):
        compile_model(model, x)
    real_weights(model, False)
    exported = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), model(x))


def test_torch_compile_notices_the_switch():
    model = network()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(2, 1, 6, 6)
    for enabled in (False, True, False):
        real_weights(model, enabled)
        torch.testing.assert_close(compiled(x), model(x))
