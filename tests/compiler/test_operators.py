"""Each lowered operator alone, compared with PyTorch through the reference interpreter and the native engine."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import leanconv.nn as lnn
from tests.compiler.checks import Call, check, kinds, steps

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(5, 7, 3),
        nn.Conv2d(6, 4, (1, 3), stride=(2, 1), padding=(0, 2), bias=False),
        nn.Conv2d(6, 9, 3, padding=2, dilation=2, groups=3),
        nn.Conv2d(5, 5, 4, padding="same"),
        nn.Conv2d(5, 5, 2, padding="valid"),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        lnn.BinaryConv2d(5, 7, 3),
        lnn.BinaryConv2d(33, 65, 3, padding=1, binarize_weight="magnitude", bias=True),
        lnn.BinaryConv2d(6, 10, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2), groups=2),
        lnn.BinaryConv2d(5, 7, 3, padding=1, pad_value=-1),
        lnn.BinaryConv2d(5, 7, 4, padding="same", pad_value=1),
        lnn.BinaryConv2d(4, 4, 3, binarize_input="rsign"),
        lnn.BinaryConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1),
        lnn.BinaryConvTranspose2d(
            6, 4, (2, 3), groups=2, dilation=(2, 1), bias=True, binarize_weight="magnitude", binarize_input="swish_sign"
        ),
    ],
    ids=str,
)
def test_convolution_2d(layer):
    if isinstance(getattr(layer, "binarize_input", None), lnn.RSign):
        nn.init.normal_(layer.binarize_input.shift)
    program = check(layer, torch.randn(2, layer.in_channels, 9, 8))
    assert program.inputs[0].height is None and program.inputs[0].width is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(5, 7, 3, padding=1, stride=2),
        nn.Conv1d(6, 4, 4, padding="same", dilation=2, groups=2),
        lnn.BinaryConv1d(5, 7, 3, padding=1, pad_value=1),
        lnn.BinaryConv1d(6, 4, 4, padding="same", groups=2, binarize_weight="magnitude"),
        nn.MaxPool1d(3, 2, padding=1),
        nn.AvgPool1d(2),
        nn.AvgPool1d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool1d(1),
        nn.BatchNorm1d(6),
        Call(lambda x: x.mean(2)),
        Call(lambda x: x.mean(-1, keepdim=True)),
    ],
    ids=str,
)
def test_one_dimensional(layer):
    channels = getattr(layer, "in_channels", getattr(layer, "num_features", 6))
    program = check(layer, torch.randn(2, channels, 11))
    assert program.inputs[0].dims == 3 and program.inputs[0].height == 1
    # torch.export itself fixes the length of what max_pool1d reads
    assert program.inputs[0].width == (11 if isinstance(layer, nn.MaxPool1d) else None)


def test_one_dimensional_network():
    model = nn.Sequential(
        nn.Conv1d(2, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.MaxPool1d(2),
        lnn.BinaryConv1d(16, 24, 3, padding=1),
        nn.BatchNorm1d(24),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    program = check(model, torch.randn(2, 2, 40))
    assert kinds(program) == ["conv", "max_pool", "binary_conv", "global_avg_pool", "linear"]
    assert program.outputs[0].dims == 2


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(9, 4), nn.Linear(9, 4, bias=False), lnn.BinaryLinear(9, 4, bias=True, binarize_weight="magnitude")],
    ids=str,
)
def test_dense(layer):
    program = check(layer, torch.randn(2, 9))
    assert program.inputs[0].dims == 2


def test_dense_network_with_batch_norm():
    model = nn.Sequential(
        nn.Linear(20, 33),
        nn.BatchNorm1d(33),
        lnn.BinaryLinear(33, 40),
        nn.BatchNorm1d(40),
        nn.Hardtanh(),
        nn.Linear(40, 2),
    )
    program = check(model, torch.randn(1, 20))
    assert kinds(program) == ["linear", "binary_conv", "linear"]
    assert steps(program, 0) == ["affine", "sign"] or steps(program, 0) == ["sign"]


ELEMENTWISE = {
    "batch_norm": nn.BatchNorm2d(6),
    "batch_norm_no_affine": nn.BatchNorm2d(6, affine=False),
    "relu": nn.ReLU(),
    "relu_inplace": nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
    "relu6": nn.ReLU6(),
    "functional_relu6": Call(F.relu6),
    "hardtanh": nn.Hardtanh(-0.5, 0.7),
    "clamp": Call(lambda x: x.clamp(-0.3, 0.4)),
    "clamp_low": Call(lambda x: x.clamp(min=0.1)),
    "clamp_high": Call(lambda x: torch.clamp(x, max=0.1)),
    "clamp_min": Call(lambda x: torch.clamp_min(x, 0.25)),
    "clamp_max": Call(lambda x: torch.clamp_max(x, 0.25)),
    "leaky_relu": nn.LeakyReLU(0.1),
    "prelu_one": nn.PReLU(),
    "prelu_channels": nn.PReLU(6),
    "rprelu": lnn.RPReLU(6),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "add_number": Call(lambda x: x + 1.5),
    "radd": Call(lambda x: 2 + x),
    "sub": Call(lambda x: x - 0.5),
    "rsub": Call(lambda x: 1 - x),
    "mul": Call(lambda x: x * -2),
    "rmul": Call(lambda x: 0.5 * x),
    "div": Call(lambda x: x / 3),
    "neg": Call(lambda x: -x),
    "add_alpha": Call(lambda x: torch.add(x, x.relu(), alpha=-0.5)),
    "sub_maps": Call(lambda x: x.relu() - x),
    "square": Call(lambda x: x * x),
    "times_own_sigmoid": Call(lambda x: x * x.sigmoid()),
    "sum_of_list": Call(lambda x: sum([x, x.relu(), x.clamp(max=0.2)])),
    "mean_of_stack": Call(lambda x: torch.stack([x, x.relu(), x * 2], 0).mean(0)),
    "mean_of_stack_inside": Call(lambda x: torch.stack([x, x.relu()], dim=-1).mean(-1)),
    "constant_channels": Call(lambda x: x * torch.arange(1.0, 7.0).view(6, 1, 1) + torch.ones(1, 6, 1, 1)),
    "dropout": nn.Dropout(0.4),
    "identity": nn.Identity(),
    "clone": Call(lambda x: x.clone().contiguous().detach() + 1),
    "float": Call(lambda x: x.float() + 1),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name):
    layer = ELEMENTWISE[name]
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    program = check(layer, torch.randn(2, 6, 4, 5))
    assert program.ops[0].kind == "elementwise"


POOLS = {
    "max": nn.MaxPool2d(2),
    "max_overlapping": nn.MaxPool2d(3, 2, padding=1),
    "max_dilated": nn.MaxPool2d(2, 1, dilation=2),
    "max_ceil": nn.MaxPool2d((3, 2), (2, 3), ceil_mode=True),
    "average": nn.AvgPool2d(2),
    "average_padded": nn.AvgPool2d(3, 2, padding=1),
    "average_exclusive": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average_ceil": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "average_ceil_padded": nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
    "adaptive": nn.AdaptiveAvgPool2d(1),
    "adaptive_to_several": nn.AdaptiveAvgPool2d((2, 3)),
    "adaptive_to_more": nn.AdaptiveAvgPool2d((10, 4)),
    "mean": Call(lambda x: x.mean((2, 3))),
    "mean_keepdim": Call(lambda x: x.mean([-1, -2], keepdim=True)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pool(name):
    check(POOLS[name], torch.randn(2, 5, 9, 11))


SHAPES = {
    "flatten": nn.Flatten(),
    "view": Call(lambda x: x.view(x.size(0), -1)),
    "reshape": Call(lambda x: x.reshape(x.shape[0], 60)),
    "cat": Call(lambda x: torch.cat([x, x.relu(), x], 1)),
    "cat_negative": Call(lambda x: torch.cat([x, x * 2], dim=-3)),
    "unflatten_point": Call(lambda x: x.mean((2, 3)).view(-1, 3, 1, 1) * 2),
    "unsqueeze": Call(lambda x: x.mean((2, 3)).unsqueeze(-1).unsqueeze(-1) + 1),
    "none_index": Call(lambda x: x.mean((2, 3))[:, :, None, None] * x),
    "squeeze": Call(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2)),
    "to_one_dimension": Call(lambda x: F.max_pool2d(x, (4, 1)).squeeze(2)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    check(SHAPES[name], torch.randn(2, 3, 4, 5))


def test_flatten_then_dense():
    program = check(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 4 * 3, 5)), torch.randn(1, 2, 6, 5))
    assert kinds(program) == ["conv", "flatten", "linear"]
    assert (program.inputs[0].height, program.inputs[0].width) == (6, 5)


SIGNED = {
    "flattened_signs": Call(lambda x, d: d(torch.flatten(x, 1)), lnn.BinaryLinear(48, 7)),
    "signs_then_flatten": Call(
        lambda x, s, d: d(torch.flatten(s(x), 1)), lnn.STESign(), lnn.BinaryLinear(48, 7, binarize_input=None)
    ),
    "signs_then_pool": Call(
        lambda x, s, c: c(F.max_pool2d(s(x), 2, padding=1)),
        lnn.STESign(),
        lnn.BinaryConv2d(3, 5, 3, binarize_input=None),
    ),
    "signs_then_cat": Call(
        lambda x, s, c: c(torch.cat([s(x), s(-x)], 1)), lnn.STESign(), lnn.BinaryConv2d(6, 5, 3, binarize_input=None)
    ),
    "double_sign": Call(lambda x, s, c: c(s(s(x))), lnn.STESign(), lnn.BinaryConv2d(3, 5, 3)),
}


@pytest.mark.parametrize("name", SIGNED)
def test_signs_commute_with_reshaping(name):
    check(SIGNED[name], torch.randn(2, 3, 4, 4))


def test_sign_of_zero_is_plus_one():
    class Zeros(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = lnn.BinaryConv2d(3, 2, 1)
            nn.init.zeros_(self.conv.weight)

        def forward(self, x):
            return self.conv(x * 0) + self.conv(-(x * 0))

    program = check(Zeros(), torch.randn(2, 3, 2, 2))
    assert program.ops[-1].kind == "binary_conv"
