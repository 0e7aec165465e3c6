"""What cannot be lowered is refused with node, layer, reason and way out, on one line; nothing is silently
approximated."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import leanconv.nn as lnn
from leanconv.compiler import CompileError, compile
from tests.compiler.checks import Call

torch.set_num_threads(1)
X = torch.randn(2, 4, 6, 6)


def refused(model, *words, example=X):
    with pytest.raises(CompileError) as caught:
        compile(model.eval(), example)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


class Inner(nn.Module):
    def forward(self, x):
        return torch.softmax(x, 1)


def test_unknown_operator_names_layer_line_reason_and_way_out():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(4, 4, 1)
            self.strange = Inner()

        def forward(self, x):
            return self.strange(self.first(x))

    refused(
        Outer(),
        "aten.softmax",
        "strange [Inner]",
        "test_refusals.py",
        "torch.softmax(x, 1)",
        "not among those that can be lowered",
        "docs/compiler.md",
    )


def _through_view(x):
    y = x + 1
    flat = y.flatten(1)
    flat.add_(1)
    return y


def _through_slice(x):
    y = x + 1
    y[:, :1].mul_(3)
    return y


REFUSED = {
    "in_place_through_flatten": (Call(_through_view), "in place"),
    "in_place_through_slice": (Call(_through_slice), "in place"),
    "in_place_on_input": (Call(lambda x: x.add_(1)), "writes into an input"),
    "batch_statistics": (nn.BatchNorm2d(4, track_running_stats=False), "track_running_stats=True"),
    "active_dropout": (Call(lambda x: F.dropout(x, 0.5, training=True)), "dropout"),
    "no_sign": (lnn.BinaryConv2d(4, 4, 3, binarize_input=None), "does not come from a sign"),
    "real_use_of_signs": (Call(lambda x, s: F.avg_pool2d(s(x), 2), lnn.STESign()), "signs"),
    "sign_as_output": (lnn.STESign(), "signs"),
    "row_constant": (Call(lambda x: x * torch.arange(6.0)), "does not broadcast"),
    "map_division": (Call(lambda x: x / (x + 2)), "divides by a map"),
    "other_axis": (Call(lambda x: torch.cat([x, x], 2)), "dimension 2"),
    "mean_of_channels": (Call(lambda x: x.mean(1, keepdim=True)), "mean over dimensions [1]"),
    "channel_gate": (Call(lambda x, c: x * c(x), nn.Conv2d(4, 1, 1)), "combined"),
    "row_gate": (Call(lambda x, p: x * p(x), nn.AvgPool2d((1, 6))), "combined"),
    "cut": (Call(lambda x: x[:, :2]), "cut out"),
    "transpose": (Call(lambda x: x.transpose(2, 3)), "not among"),
    "half": (Call(lambda x: x.half()), "float16"),
    "half_weights": (nn.Conv2d(4, 4, 1).half(), "model.float()"),
    "random": (Call(lambda x: x + torch.rand(4, 1, 1)), "random"),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
    "dense_on_maps": (nn.Linear(6, 2), "flatten"),
    "batch_moved": (Call(lambda x: x.flatten(0, 1)), "shape"),
    "unused_input": (Call(lambda x: torch.ones(3)), "does not depend on the input"),
    "moved_axes": (Call(lambda x: x.mean((2, 3)).unsqueeze(1)), "shape"),
    "real_transposed": (nn.ConvTranspose2d(4, 4, 2), "not among"),
    "computed_weight": (Call(lambda x: F.conv2d(x, x.mean((0, 2, 3)).view(1, 4, 1, 1))), ""),
    "branch_on_value": (Call(lambda x: x if x.sum() > 0 else -x), "torch.export cannot trace"),
    "broken_weights": (Call(lambda x: x + torch.tensor(float("nan"))), "NaN"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    model, *words = REFUSED[name]
    refused(model, *words)


def test_autocast_region():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.conv(x).float()

    refused(Net(), "autocast")


def test_no_grad_region_is_no_obstacle():
    class Net(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                x = x * 2
            return x + 1

    assert len(compile(Net(), X).ops) == 1


def test_harmless_in_place_operators_are_lowered():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(4, 4, 1), nn.Dropout(0.5)

        def forward(self, x):
            y = self.drop(self.conv(x))
            y += x
            return F.relu_(y).mul_(2)

    program = compile(Net().eval(), X)
    assert [s.kind for s in program.ops[0].steps] == ["affine", "add", "clip", "affine", "store"]


def test_buffer_writes_are_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen += 1
            return x * 2

    refused(Counting())


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(2, 4, 6, 6, dtype=torch.uint8),
        torch.zeros(3),
        torch.zeros(1, 2, 3, 4, 5),
        "picture",
        (),
        (torch.zeros(2, 3), torch.zeros(3, 3)),
        torch.zeros(2, 3, 6, 6),
        {"wrong": torch.zeros(2, 4, 6, 6)},
    ],
)
def test_bad_examples(example):
    refused(nn.Conv2d(4, 4, 1), example=example)


def test_modes_of_modules_are_restored():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5), Inner())
    model[1].eval()
    with pytest.raises(CompileError):
        compile(model, X)
    assert (model.training, model[0].training, model[1].training, model[2].training) == (True, True, False, True)
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    compile(model, X)
    assert model.training and model[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
