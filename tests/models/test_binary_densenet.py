import pytest
import torch
from torch import nn

from leanconv import models  # noqa: F401
from leanconv.models.dense import DenseNet, DenseStep, Transition, transition_width
from leanconv.nn import BinaryConv2d
from leanconv.nn.fractal import BinaryDenseLayer, FractalUnit

import timm  # isort: skip


@pytest.mark.parametrize(
    ("name", "widths"),
    [  # the map of each stage (growth included) and the transitions' outputs; specification, section 6
        ("binary_densenet28", [448, 160, 544, 192, 576, 256, 576]),
        ("binary_densenet51", [448, 160, 544, 192, 576, 256, 576]),
    ],
)
def test_widths(name, widths):
    model = timm.create_model(name)
    stages = [info["num_chs"] for info in model.feature_info][1:]
    narrow = [m.conv.out_channels for m in model.modules() if isinstance(m, Transition)]
    assert stages == widths[::2] and narrow == widths[1::2]


@pytest.mark.parametrize("depth", [28, 37, 45, 51])
def test_depth_is_the_name(depth):
    """Stem, binary layers, transitions and classifier lie on one path."""
    model = timm.create_model(f"binary_densenet{depth}")
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth


def test_layer_and_growth():
    """Zero outputs of the binary convolutions leave concat(x, 0)."""
    step = DenseStep(BinaryDenseLayer(5, 3)).eval()
    step.unit.conv.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    x = torch.randn(2, 5, 4, 4)
    assert torch.equal(step(x), torch.cat([x, torch.zeros(2, 3, 4, 4)], 1))


def test_transition_by_hand():
    layer = Transition(3, 2).eval()
    x = torch.randn(1, 3, 3, 4)
    with torch.no_grad():
        layer.bn.bias.fill_(-0.1)
    normed = x / (1 + layer.bn.eps) ** 0.5 - 0.1
    pooled = torch.empty(1, 3, 2, 2)
    for i in range(2):
        for j in range(2):
            pooled[:, :, i, j] = normed[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((2, 3))
    expected = torch.einsum("nchw,oc->nohw", pooled.clamp(min=0), layer.conv.weight[:, :, 0, 0])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("channels", "reduction", "width"), [(448, 2.7, 160), (640, 3.3, 192), (40, 4.0, 32)])
def test_transition_width(channels, reduction, width):
    assert transition_width(channels, reduction) == width


def test_gradients_are_cut_at_the_clip():
    model = timm.create_model("binary_densenet28_cifar")
    layers = [m for m in model.modules() if isinstance(m, BinaryConv2d)]
    assert {m.binarize_input.clip for m in layers} == {m.binarize_weight.clip for m in layers} == {1.3}
    other = timm.create_model("binary_densenet28_cifar", clip=1.0, binarize_weight="magnitude")
    layer = next(m for m in other.modules() if isinstance(m, BinaryConv2d))
    assert (layer.binarize_input.clip, layer.binarize_weight.clip, layer.binarize_weight.kind) == (1, 1, "magnitude")


def test_lists_and_units_are_free():
    """One column is BinaryDenseNet's layer; a unit with arguments of its own, other lists and growth."""
    model = timm.create_model("binary_densenet28_cifar", growth=8, layers=(2, 1), reductions=(2.0,), num_classes=3)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3) and model.num_features == 32 + 8

    def unit(in_channels, growth, columns):
        return FractalUnit(columns, lambda first: BinaryDenseLayer(in_channels if first else growth, growth, not first))

    one = DenseNet(unit, (1, 1), 8, 8, (2,), stem="cifar", columns=1).eval()
    plain = DenseNet(BinaryDenseLayer, (1, 1), 8, 8, (2,), stem="cifar").eval()
    plain.load_state_dict({key.replace("layers.c1p1.", ""): value for key, value in one.state_dict().items()})
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(one(x), plain(x))


def test_the_skeleton_carries_dense_fractals():
    """SoFAr's DRF-c2d2 DenseNet51(53): the widths of its specification, section 6, and three convolutions a unit."""

    def unit(in_channels, growth):
        return FractalUnit(2, lambda first: BinaryDenseLayer(in_channels if first else growth, growth, not first))

    with torch.device("meta"):
        net = DenseNet(unit, (6, 6, 6, 5), growth=53, initial_channels=53, reductions=(2.7, 2.7, 2.2))
    narrow = [m.conv.out_channels for m in net.modules() if isinstance(m, Transition)]
    assert [info["num_chs"] for info in net.feature_info] == [53, 371, 446, 478, 489] and narrow == [128, 160, 224]
    assert sum(isinstance(m, BinaryConv2d) for m in net.modules()) == 3 * 23


def test_wrong_arguments():
    with pytest.raises(ValueError, match="unknown stem 'vgg': expected one of imagenet, cifar, grouped"):
        timm.create_model("binary_densenet28", stem="vgg")
    with pytest.raises(ValueError, match="3 stages need 2 reductions, one a transition, not 3"):
        timm.create_model("binary_densenet28", layers=(1, 1, 1))


def test_grad_checkpointing_changes_nothing_but_memory():
    model = timm.create_model("binary_densenet28_cifar", growth=8, layers=(2, 2), reductions=(2.0,))
    x = torch.randn(2, 3, 8, 8)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
