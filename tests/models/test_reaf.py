import numpy as np
import pytest
import torch
from torch import nn

from leanconv.models.reaf import RESNET50_WIDTHS
from leanconv.nn.reaf_conv import ReafConv2d

import timm  # isort: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def count(name: str, size: int = 224, **arguments) -> tuple[int, int]:
    """Multiply-adds of convolutions and dense layers, and their weights; no numbers are computed."""
    with torch.device("meta"):
        model = timm.create_model(name, **arguments).eval()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    pixels = {}
    for layer in layers:
        layer.register_forward_hook(lambda m, args, y: pixels.update({m: y[0, 0].numel() if y.dim() == 4 else 1}))
    model(torch.empty(1, 3, size, size, device="meta"))
    return sum(m.weight.numel() * pixels[m] for m in layers), sum(m.weight.numel() for m in layers)


def reaf_layers(model: nn.Module) -> dict[str, ReafConv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, ReafConv2d)}


@pytest.mark.parametrize(("sets", "overlap"), RESNET50_WIDTHS)
def test_resnet50_costs_what_resnet50_costs(sets, overlap):
    macs, weights = count("reaf_resnet50", sets=sets, overlap=overlap)
    assert abs(macs / 4_089_184_256 - 1) < 0.005
    if sets % overlap == 0:
        assert count("reaf_resnet50_control", sets=sets, overlap=overlap) == (macs, weights)


def test_other_networks_cost_what_theirs_cost():
    assert count("resnet50")[0] == 4_089_184_256
    base = count("mobilenetv2_100")[0]
    for overlap in (2, 3):
        assert abs(count("reaf_plus_mobilenetv2", overlap=overlap)[0] / base - 1) < 0.005
    assert count("reaf_plus_mobilenetv2_control") == count("reaf_plus_mobilenetv2", overlap=2)
    for overlap in (2, 4):
        assert count("reaf_plus_resnext50", overlap=overlap) == count("resnext50_32x4d")
    for depth in (20, 56):
        reaf = count(f"reaf_resnet{depth}_cifar", 32)
        assert count(f"reaf_resnet{depth}_cifar_control", 32) == reaf
        if depth == 20:
            assert reaf == count("resnet20_cifar", 32)
    for sets, overlap in ((8, 2), (4, 1), (4, 3), (2, 2)):
        if 16 * sets % overlap == 0:
            assert count("reaf_resnet20_cifar", 32, sets=sets, overlap=overlap) == count("resnet20_cifar", 32)


@pytest.mark.parametrize(
    ("name", "arguments", "plain"),
    [
        ("reaf_resnet50", {"sets": 1, "overlap": 1, "widths": (64, 128, 256, 512)}, "resnet50"),
        ("reaf_plus_resnext50", {"overlap": 1}, "resnext50_32x4d"),
        ("reaf_plus_mobilenetv2", {"sets": 1, "overlap": 1, "expansion": 6}, "mobilenetv2_100"),
        ("reaf_resnet20_cifar", {"sets": 1, "overlap": 1}, "resnet20_cifar"),
    ],
)
def test_without_sets_it_is_the_plain_network(name, arguments, plain):
    model, plain = timm.create_model(name, **arguments).eval(), timm.create_model(plain).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert reaf_layers(model) and torch.equal(model(x), plain(x))


def test_the_control_is_the_network_of_disjoint_groups():
    model = timm.create_model("reaf_resnet50_control").eval()
    groups = timm.create_model("resnet50", cardinality=2, base_width=40, channels=(64, 128, 256, 512))
    assert all(m.sets == 2 and m.window == m.shift == m.in_channels // 2 for m in reaf_layers(model).values())
    ours = {k: v.shape for k, v in model.state_dict().items() if not k.startswith("layer4")}
    assert ours == {k: v.shape for k, v in groups.state_dict().items() if not k.startswith("layer4")}


def test_where_reaf_goes():
    layers = reaf_layers(timm.create_model("reaf_resnet50"))
    assert len(layers) == 16 and all(name.endswith("conv2") for name in layers)
    assert {(m.in_channels, m.window, m.shift, m.sets) for m in layers.values()} == {
        (80, 40, 20, 4),
        (160, 80, 40, 4),
        (320, 160, 80, 4),
        (624, 312, 156, 4),
    }
    layers = reaf_layers(timm.create_model("reaf_plus_resnext50"))
    assert {(m.in_channels, m.window, m.shift, m.sets) for m in layers.values()} == {
        (32 * n, n, n // 2, 64) for n in (4, 8, 16, 32)
    }
    layers = reaf_layers(timm.create_model("reaf_plus_mobilenetv2"))
    assert len(layers) == 32 and not any(name.startswith("blocks.0.") for name in layers)
    assert all(4 * m.window == 3 * m.in_channels and m.kernel_size == (1, 1) for m in layers.values())
    for overlap in (2, 3):
        layers = reaf_layers(timm.create_model("reaf_plus_mobilenetv2", overlap=overlap))
        assert all(m.out_channels % 8 == 0 for name, m in layers.items() if name.endswith("conv_pw"))
    model = timm.create_model("reaf_resnet20_cifar")
    layers = reaf_layers(model)
    assert len(layers) == 18 and all(2 * m.window == m.in_channels for m in layers.values())
    assert [model.get_submodule(f"layer{i}")[0].conv1.out_channels for i in (1, 2, 3)] == [32, 64, 128]


def test_overlap_mixes_what_the_control_keeps_apart():
    """Of the branch of a block, the first half of the outputs does not see the last quarter of the inputs in the
    control, and does with overlap."""
    for name, mixes in (("reaf_resnet20_cifar", True), ("reaf_resnet20_cifar_control", False)):
        block = timm.create_model(name).eval().layer1[1]
        block.downsample = nn.Conv2d(16, 16, 1)
        nn.init.zeros_(block.downsample.weight)
        x, changed = torch.randn(2, 16, 5, 5).relu().repeat(2, 1, 1, 1).chunk(2)
        changed = changed.clone()
        changed[:, 12:] += 1
        assert torch.equal(block(x)[:, :8], block(changed)[:, :8]) != mixes


def test_mobilenet_is_a_timm_classifier():
    model = timm.create_model("reaf_plus_mobilenetv2", num_classes=7, drop_rate=0.1)
    x = torch.randn(2, 3, 64, 64)
    model(x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    maps = model.forward_features(x)
    assert torch.equal(model.forward_head(maps), model(x)) and maps.shape[1] == model.num_features == 1280
    features = timm.create_model("reaf_plus_mobilenetv2", features_only=True, out_indices=(1, 3))
    assert [m.shape[1] for m in features(x)] == features.feature_info.channels() == [24, 96]
    assert model.get_classifier() is model.get_submodule(model.pretrained_cfg["classifier"])
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


def test_arguments_of_timm_arrive():
    model = timm.create_model("reaf_resnet50", output_stride=16, block_args={"attn_layer": "se"}, num_classes=3)
    assert model.layer4[1].conv2.dilation == (2, 2) and model.layer1[0].se is not None
    assert timm.create_model("reaf_plus_resnext50", block_args={"overlap": 4}).layer1[0].conv2.sets == 128
    model = timm.create_model("reaf_plus_mobilenetv2", act_layer="prelu", num_classes=3)
    assert isinstance(model.blocks[1][0].bn1.act, nn.PReLU)


@pytest.mark.slow
def test_exports_to_onnx_with_a_dynamic_batch(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = timm.create_model("reaf_resnet20_cifar").eval(), torch.randn(3, 3, 14, 14)
    path = tmp_path / "reaf.onnx"
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        model, (x[:2],), path, dynamo=True, dynamic_shapes=({0: batch},), input_names=["x"], verbose=False
    )
    (y,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(y, model(x).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("reaf_resnet50", {"sets": 5}, r"no widths for sets=5, overlap=2: give widths, or one of \(2, 1\), "),
        ("reaf_resnet50", {"widths": (80, 160, 320, 625)}, r"widths must be 4 multiples of sets \(4\)"),
        ("reaf_resnet50_control", {"sets": 4, "overlap": 3, "widths": (64,) * 4}, "no control for sets=4, overlap=3"),
        ("reaf_plus_resnext50", {"overlap": 3}, r"overlap \(3\) must divide the 4 channels of a group"),
        ("reaf_plus_mobilenetv2", {"overlap": 1}, "no expansion for overlap / sets = 0.25: give one, or .* 0.5, 0.75"),
        ("reaf_plus_mobilenetv2_control", {"overlap": 3}, "no control for sets=4, overlap=3"),
        ("reaf_resnet20_cifar", {"sets": 8, "overlap": 3}, r"16 channels times sets \(8\) must be a multiple of"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **arguments)
