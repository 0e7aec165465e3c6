"""Markers: shapes without data, the same numbers as the layers, in exported graphs and nowhere else."""

import pytest
import torch
from torch import nn

from leanconv.nn import BinaryConv1d, BinaryConv2d, BinaryConvTranspose2d, BinaryLinear, RPReLU, sign

OPS = torch.ops.leanconv


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = BinaryConv2d(3, 8, 3, 2, 1, bias=True, pad_value=-1, binarize_weight="magnitude")
        self.act = RPReLU(8)
        self.up = BinaryConvTranspose2d(8, 4, 3, 2, 1, 1, groups=2, binarize_input="rsign", binarize_weight="magnitude")
        self.same = BinaryConv2d(4, 4, (4, 3), padding="same", binarize_input="approx_sign")
        self.line = BinaryConv1d(4, 5, 3, padding=2, binarize_input="swish_sign")
        self.head = BinaryLinear(5, 6, True, binarize_weight="magnitude")

    def forward(self, x):
        x = self.same(self.up(self.act(self.first(x))))
        return self.head(self.line(x.mean(3)).mean(2))


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy().eval()


def called(graph_module):
    return [str(n.target) for n in graph_module.graph.nodes if n.op == "call_function"]


def test_export_emits_exactly_the_markers(toy):
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(toy, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    markers = [name for name in called(exported) if name.startswith("leanconv.")]
    assert markers == [
        "leanconv.sign.default",
        "leanconv.binary_conv.default",
        "leanconv.sign.default",
        "leanconv.binary_conv_transpose.default",
        "leanconv.sign.default",
        "leanconv.binary_conv.default",
        "leanconv.sign.default",
        "leanconv.binary_conv.default",
        "leanconv.sign.default",
        "leanconv.binary_linear.default",
    ]
    others = {name for name in called(exported)} - set(markers)
    assert others == {"aten.view.default", "aten.add.Tensor", "aten.prelu.default", "aten.mean.dim"}
    for n in (1, 2, 5):
        x = torch.randn(n, 3, 8, 8)
        assert torch.equal(exported.module()(x), toy(x))


def test_marker_arguments(toy):
    exported = torch.export.export(toy, (torch.randn(2, 3, 8, 8),))
    nodes = [n for n in exported.graph.nodes if str(n.target).startswith("leanconv.binary")]
    signature = exported.graph_signature.inputs_to_parameters
    assert [signature[n.args[1].name] for n in nodes] == [
        f"{m}.weight" for m in ("first", "up", "same", "line", "head")
    ]
    assert nodes[0].args[3:] == ("magnitude", [2, 2], [1, 1, 1, 1], -1, [1, 1], 1)
    assert nodes[1].args[3:] == ("magnitude", [2, 2], [1, 1], [1, 1], [1, 1], 2)
    assert nodes[2].args[3:] == ("sign", [1, 1], [1, 1, 2, 1], 0, [1, 1], 1)
    assert nodes[3].args[3:] == ("sign", [1], [2, 2], 0, [1], 1)
    assert nodes[4].args[3:] == ("magnitude",)
    assert all(str(n.args[0].target) == "leanconv.sign.default" for n in nodes)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sign", (torch.randn(3, 4),)),
        (
            "binary_conv",
            (
                sign(torch.randn(2, 4, 6, 5)),
                *(torch.randn(6, 2, 3, 3), torch.randn(6), "magnitude"),
                *([2, 1], [1, 0, 2, 1], 1, [1, 1], 2),
            ),
        ),
        ("binary_conv", (sign(torch.randn(2, 4, 6)), torch.randn(6, 4, 3), None, "sign", [1], [1, 2], 0, [2], 1)),
        (
            "binary_conv_transpose",
            (
                sign(torch.randn(2, 4, 3, 3)),
                *(torch.randn(4, 3, 3, 3), torch.randn(6), "magnitude"),
                *([2, 2], [1, 1], [1, 1], [1, 1], 2),
            ),
        ),
        ("binary_linear", (sign(torch.randn(2, 4)), torch.randn(3, 4), None, "magnitude")),
    ],
)
def test_operators_are_well_formed(name, arguments):
    torch.library.opcheck(
        getattr(OPS, name).default,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_training_never_meets_a_marker(toy):
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        toy(torch.randn(1, 3, 8, 8))
    assert any("convolution" in name for name in seen)
    assert not any(name.startswith("leanconv") for name in seen)


def test_torch_compile_keeps_values_and_gradients():
    torch.manual_seed(0)
    layer = nn.Sequential(
        BinaryConv2d(3, 4, 3, padding=1, binarize_input="approx_sign", binarize_weight="magnitude"),
        nn.BatchNorm2d(4),
        BinaryConv2d(4, 2, 3, bias=True, binarize_input="rsign", pad_value=1),
    )
    layer.eval()
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected, y = layer(x), compiled(x)
    assert torch.equal(y, expected)
    wanted = [x, *layer.parameters()]
    want, got = (torch.autograd.grad(result.square().sum(), wanted) for result in (expected, y))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
