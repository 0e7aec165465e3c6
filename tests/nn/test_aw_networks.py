"""AW-convolutions in networks: parameters, conversion, compilation, export."""

import pytest
import torch
from torch import nn

from leanconv import models  # noqa: F401  (makes timm importable)
from leanconv.nn import ConvertError, convert, convertible
from leanconv.nn.aw_attention import WeightAttention
from leanconv.nn.aw_conv import AWConv2d
from tests.nn.aw_oracle import SHARES, gradients, make, oracle

import timm  # isort: skip

torch.set_num_threads(1)


@pytest.mark.parametrize("shape,share,impl", [("even", "in", "auto"), ("stride", "out", "per_sample")])
def test_compiles_without_graph_breaks(shape, share, impl):
    torch.compiler.reset()
    layer, x = make(shape, share, impl)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got, expected = compiled(x), oracle(layer, x)
    torch.testing.assert_close(got, expected)
    for a, b in zip(gradients(got, layer, x), gradients(expected, layer, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape,share", [("dilation", "in"), ("even", "out")])
def test_torch_export_with_dynamic_sizes(shape, share):
    layer, x = make(shape, share, "auto")
    dim = torch.export.Dim
    sizes = {0: dim("n"), 2: dim("h", min=4), 3: dim("w", min=4)}
    program = torch.export.export(layer, (x.detach(),), dynamic_shapes=(sizes,)).module()
    for n, height, width in ((1, 4, 9), (3, 8, 5), (8, 7, 7)):
        x = torch.randn(n, layer.in_channels, height, width, dtype=torch.float64)
        torch.testing.assert_close(program(x), layer(x))


@pytest.mark.parametrize("name,share,sizes", [("dilation", "in", 3), ("stride", "none", 1)])
def test_onnx_with_dynamic_sizes(tmp_path, name, share, sizes):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, x = make(name, share, "per_sample")
    layer, x = layer.float(), x.detach().float()
    dim = torch.export.Dim
    dynamic = dict(list({0: dim("n"), 2: dim("h", min=4), 3: dim("w", min=4)}.items())[:sizes])
    program = torch.onnx.export(layer, (x,), dynamo=True, dynamic_shapes=(dynamic,), verbose=False)
    program.save(tmp_path / "layer.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", options, providers=["CPUExecutionProvider"])
    for n in (1, 3, 8):
        x = torch.randn(n, *(x.shape[1:] if sizes == 1 else (x.shape[1], 4 + n, 9)))
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), layer(x).detach(), atol=1e-4, rtol=1e-4)


def extra(layer, ratio, share):
    """Extra parameters, by section 5 of the specification."""
    c1, c2 = layer.in_channels, layer.out_channels
    hidden = max(c1 // ratio, 1)
    outputs = {"in": c2, "out": c1, "taps": 1, "none": c2 * c1 // layer.groups}[share]
    return c1 * hidden + hidden * outputs + 2 * hidden + 2 * outputs


def count(name, only, **args):
    with torch.device("meta"):
        model = timm.create_model(name)
        model = convert(model, AWConv2d, only=only, **args)
    layers = [m for m in model.modules() if isinstance(m, AWConv2d)]
    added = sum(extra(m, args.get("rd_ratio", 16), args.get("share", "in")) for m in layers)
    assert added == sum(p.numel() for m in layers for p in m.attn.parameters())
    return sum(p.numel() for p in model.parameters()), added


@pytest.mark.parametrize(
    "name,args,total",
    [
        ("resnet50", {}, 25_722_240),
        ("resnet101", {}, 44_862_880),
        ("resnet50", {"pool": "one"}, 25_722_240),
        ("resnet50", {"rd_ratio": 4}, "26.20"),
        ("resnet50", {"rd_ratio": 8}, "25.88"),
        ("resnet50", {"rd_ratio": 32}, "25.64"),
        ("resnet50", {"share": "out"}, 25_722_240),
        ("resnet50", {"share": "taps"}, "25.64"),
        ("resnet50", {"share": "none"}, "60.18"),
        ("resnet101", {"rd_ratio": 4}, "45.76"),
        ("resnet101", {"rd_ratio": 32}, "44.71"),
        ("resnet101", {"share": "taps"}, "44.70"),
        ("resnet101", {"share": "none"}, "99.30"),
    ],
)
def test_parameters_of_the_specification(name, args, total):
    got, _ = count(name, ["layer*.conv2"], **args)
    assert (got if isinstance(total, int) else f"{got / 1e6:.2f}") == total


@pytest.mark.parametrize(
    "name,only,added",
    [
        ("resnext50_32x4d", ["layer*.conv2"], 0.6448),
        ("mobilenetv1_100", ["*conv_dw"], 0.3593),
        ("mobilenetv1_100", ["*conv_pw"], 0.3831),
    ],
)
def test_parameters_of_grouped_networks(name, only, added):
    assert count(name, only)[1] / 1e6 == pytest.approx(added, abs=5e-5)


def test_parameters_without_norms():
    layer = AWConv2d(64, 64, 3, bias=False, norm_layer=nn.Identity)
    assert sum(p.numel() for p in layer.attn.parameters()) == 64 * 4 + 4 * 64
    assert sum(p.numel() for p in WeightAttention(8, 8, (3, 3)).parameters()) == 8 + 8 + 2 + 16  # one hidden channel


@pytest.mark.parametrize("share", SHARES)
def test_convert_keeps_a_network(share):
    torch.manual_seed(0)
    model = timm.create_model("resnet18").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        weights = {name: p for name, p in model.named_parameters()}
        model = convert(model, AWConv2d, only=["layer[34]*.conv?"], rd_ratio=8, share=share, start="identity")
        got = model(x)
    assert sum(isinstance(m, AWConv2d) for m in model.modules()) == 8
    assert all(dict(model.named_parameters())[name] is p for name, p in weights.items())
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert model.layer3[0].conv1.attn.fc1.weight.shape[0] == 128 // 8


def test_convert_refuses_other_padding():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 3))
    with pytest.raises(ConvertError, match="padding_mode='reflect'"):
        convertible(model, AWConv2d, skip=())
