"""One sweep over every network that leanconv registers with timm, at a small picture size."""

import math

import pytest
import torch
from torch import nn

from leanconv import models
from leanconv.compiler import CompileError, compile
from leanconv.models import float_twin, list_models
from leanconv.models.cifar_resnet import ATTENTION
from leanconv.networks import settle
from leanconv.nn import BinaryConv2d, weight_scale
from leanconv.nn.augmented_attention import AAConv2d
from leanconv.nn.bam import BAM
from leanconv.onnx_export import export_onnx

import timm  # isort: skip

NAMES = list_models()
BINARY = list_models(binary=True)
FAST = {  # one a family; the others are swept by `make test-all`
    "aw_resnet20_cifar",
    "aw_se_resnet20_cifar",
    "binary_densenet28_cifar",
    "bireal_digits",
    "bireal_resnet20_cifar",
    "drf_c2d2_densenet51_cifar",
    "fractalnet_cifar",
    "meliusnet22",
    "quicknet_small",
    "reactnet18",
    "reaf_resnet20_cifar",
    "resnet_digits",
    "resnete18",
    "rf_c2d2_resnet21_cifar",
}
NOT_AW = {name for name in FAST if not name.startswith("aw_")}
NARROW = {"fractalnet": {"channels": (8, 8, 16, 16)}, "fractalnet_cifar": {"channels": (8, 8, 16, 16, 16)}}
WIDENED = {"aw_mobilenetv2", "reaf_plus_mobilenetv2", "reaf_plus_mobilenetv2_control"}  # after the last stage
REFUSED = [name for name in NAMES if {"aa", "bam", "cbam", "eca"} & set(name.split("_"))]  # by the engine


def fast_or_slow(names, fast=FAST):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


SWEEP = fast_or_slow(NAMES)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def picture(name: str, batch: int = 2, channels: int | None = None) -> torch.Tensor:
    c, height, _ = timm.get_pretrained_cfg(name).input_size
    side = min(height, 40 if height > 40 else 14)  # odd sizes on the way: 20, 10, 5, 3, 2 and 14, 7, 4, 2
    if name.startswith("quicknet"):  # whose transitions round down
        side = 64
    return torch.randn(batch, channels or c, side, side)


@pytest.mark.parametrize("name", SWEEP)
def test_network(name):
    """Forward, backward, features, heads, state dict, configuration."""
    cfg = timm.get_pretrained_cfg(name)
    model = timm.create_model(name, num_classes=7)
    x = picture(name)
    y = model(x)
    assert y.shape == (2, 7) and torch.isfinite(y).all()
    y.square().sum().backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing

    model.eval()
    maps = model.forward_features(x)
    assert maps.shape[1] == model.num_features
    assert torch.equal(model.forward_head(maps), model(x))
    assert model.forward_head(maps, pre_logits=True).shape == (2, model.head_hidden_size)
    last, listed = model.forward_intermediates(x)
    assert torch.equal(last, maps)
    assert [m.shape[1] for m in listed] == [info["num_chs"] for info in model.feature_info]
    (only,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert torch.equal(only, listed[-1]) and (name in WIDENED or torch.equal(only, maps))
    (first,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(first, listed[1])

    other = timm.create_model(name, num_classes=7).eval()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))

    assert model.get_submodule(cfg.first_conv).weight.shape[1] == cfg.input_size[0]
    assert model.get_classifier() is model.get_submodule(cfg.classifier)
    assert len(cfg.mean) == len(cfg.std) == cfg.input_size[0]
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == maps.shape

    expected = {name: p for name, p in timm.create_model(name).named_parameters()}
    assert expected[f"{cfg.classifier}.weight"].shape[0] == cfg.num_classes


@pytest.mark.parametrize("name", SWEEP)
def test_features_only_and_in_chans(name):
    model = timm.create_model(name, features_only=True, in_chans=2)
    x = picture(name, channels=2)
    maps = model(x)
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    for m, reduction in zip(maps, model.feature_info.reduction(), strict=True):
        assert m.shape[2] == math.ceil(x.shape[2] / reduction)
    two = timm.create_model(name, features_only=True, in_chans=2, out_indices=(1, 2))
    assert len(two(x)) == 2


@pytest.mark.parametrize("name", fast_or_slow(NAMES, NOT_AW))  # half a minute; tests/nn has their layers
def test_export_with_dynamic_batch(name):
    """In float64: untrained, some networks have activations so large that float32 says little."""
    model = timm.create_model(name).double().eval()
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (picture(name).double(),), dynamic_shapes=({0: batch},))
    calls = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    layers = sum(isinstance(m, BinaryConv2d) for m in model.modules())
    assert calls.count("leanconv.binary_conv.default") == layers
    assert calls.count("leanconv.sign.default") == layers
    assert (layers > 0) == (name in BINARY)
    x = picture(name, batch=3).double()
    expected = model(x).detach()
    torch.testing.assert_close(exported.module()(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("name", fast_or_slow(name for name in NAMES if name not in REFUSED))
def test_compiles_and_runs_at_parity(name):
    """Every operator in the engine against PyTorch, on a network with activations of a usual spread."""
    model, x = timm.create_model(name, **NARROW.get(name, {})), picture(name)
    settle(model, picture(name, batch=8).numpy())
    compile(model.eval(), x, verify=True)


@pytest.mark.parametrize(
    "layer",
    [AAConv2d(16, 32, 3, padding=1, num_heads=2, feat_size=14), BAM(16), ATTENTION["cbam"](16), ATTENTION["eca"](16)],
    ids=type,
)
def test_engine_refuses_attention_on_maps(layer):
    with pytest.raises(CompileError, match="cannot compile operator"):
        compile(layer.eval(), torch.randn(2, 16, 14, 14))


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_attention_on_maps_is_for_onnx(name, tmp_path):
    model, x = timm.create_model(name).eval(), picture(name)
    with pytest.raises(CompileError, match="cannot compile operator"):
        compile(model, x)
    difference = export_onnx(model, x, tmp_path / "model.onnx").largest_difference
    assert difference is not None and difference < 1e-3 and (tmp_path / "model.onnx").exists()


DEPTHS = {
    "bireal_resnet18": 16,
    "bireal_resnet34": 32,
    "bireal_resnet20_cifar": 18,
    "bireal_resnet18_cifar": 16,
    "bireal_digits": 6,
}


@pytest.mark.parametrize("name", DEPTHS)
def test_float_twin_has_the_same_shape(name):
    twin = timm.create_model(float_twin(name), num_classes=7, in_chans=2)
    model = timm.create_model(name, num_classes=7, in_chans=2)
    convs = {key: m.weight.shape for key, m in twin.named_modules() if isinstance(m, nn.Conv2d) and "down" not in key}
    ours = {key: m.weight.shape for key, m in model.named_modules() if isinstance(m, nn.Conv2d) and "down" not in key}
    assert ours == convs
    assert twin(picture(name, channels=2)).shape == (2, 7)


@pytest.mark.parametrize("name", DEPTHS)
def test_bireal_structure(name):
    model = timm.create_model(name)
    binary = {key: m for key, m in model.named_modules() if isinstance(m, BinaryConv2d)}
    assert len(binary) == DEPTHS[name]
    assert next(iter(binary)) == "layer1.0.conv1"
    assert all(m.kernel_size == (3, 3) and m.bias is None and m.pad_value == 0 for m in binary.values())
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    twin = timm.create_model(float_twin(name))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in twin.parameters())


def test_bireal_block_by_hand():
    """bn1(s1 * conv(sign x, sign w1)) + pool-1x1-bn(x), then bn2(s2 * conv(sign ., sign w2)) + itself."""
    block = models.BiRealBlock(4, 8, stride=2).eval()
    for m in block.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight)
            nn.init.uniform_(m.bias)
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 7, 5)

    def sgn(t):
        return torch.where(t >= 0, 1.0, -1.0)

    def norm(t, bn):
        shape = (1, -1, 1, 1)
        t = (t - bn.running_mean.view(shape)) / torch.sqrt(bn.running_var.view(shape) + bn.eps)
        return t * bn.weight.view(shape) + bn.bias.view(shape)

    def conv(t, layer):
        y = nn.functional.conv2d(sgn(t), sgn(layer.weight), stride=layer.stride, padding=1)
        return y * weight_scale(layer.weight, "magnitude").view(1, -1, 1, 1)

    pooled = torch.empty(2, 4, 4, 3)
    for i in range(4):
        for j in range(3):
            pooled[:, :, i, j] = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
    shortcut = norm(nn.functional.conv2d(pooled, block.downsample[1].weight), block.downsample[2])
    middle = norm(conv(x, block.conv1), block.bn1) + shortcut
    expected = norm(conv(middle, block.conv2), block.bn2) + middle
    torch.testing.assert_close(block(x), expected)


def test_binary_convolutions_forced_to_zero_leave_the_shortcut():
    block = models.BiRealBlock(6, 6).eval()
    for m in (block.conv1, block.conv2):
        m.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    x = torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(block(x), x)


def test_model_arguments():
    model = timm.create_model(
        "bireal_digits", binarize_input="ste_sign", binarize_weight="sign", pad_value=-1, drop_rate=0.5
    )
    layer = model.layer2[0].conv1
    assert (layer.binarize_weight.kind, layer.pad_value, model.drop_rate) == ("sign", -1, 0.5)
    x = torch.randn(4, 1, 8, 8)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_grad_checkpointing_changes_nothing_but_memory():
    model = timm.create_model("bireal_digits")
    x = torch.randn(4, 1, 8, 8)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    grads = []
    for enable in (False, True):
        model.load_state_dict(state)
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_digits_network_is_small():
    model = timm.create_model("bireal_digits")
    twin = timm.create_model(float_twin("bireal_digits"))
    twin_bytes = 4 * sum(t.numel() for t in twin.state_dict().values())
    binary = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, BinaryConv2d)}
    real = sum(p.numel() for p in model.parameters() if id(p) not in binary)
    packed = sum(binary.values()) / 8 + 4 * real
    assert twin_bytes <= 1.5e6
    assert packed <= twin_bytes / 8 - 30_000  # room for scales, JSON and header


def test_names():
    assert set(BINARY) < set(NAMES) and set(list_models(binary=False)) == set(NAMES) - set(BINARY)
    assert all(timm.is_model(name) and name in timm.list_models() for name in NAMES)
    with pytest.raises(ValueError, match="did you mean 'bireal_resnet18'"):
        float_twin("bireal_resnet_18")
    with pytest.raises(models.WeightsError, match="no pretrained weights ship for 'bireal_resnet34'") as error:
        timm.create_model("bireal_resnet34", pretrained=True)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown stem 'vgg'"):
        timm.create_model("bireal_digits", stem="vgg")
