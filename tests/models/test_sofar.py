import pytest
import torch
from torch import nn

import leanconv
from leanconv import models  # noqa: F401
from leanconv.models.sofar import BinaryDownsample
from leanconv.nn import BinaryConv2d
from leanconv.nn.fractal import FractalUnit

import timm  # isort: skip


def operations(name, size, **args):
    """(OPs without the first convolution, OPs of it): float MACs and binary MACs / 64, counted by hooks."""
    model = timm.create_model(name, **args).eval()
    counts = {"stem": 0.0, "rest": 0.0}
    first = model.get_submodule(timm.get_pretrained_cfg(name).first_conv)

    def count(module, inputs, output):
        macs = module.weight.numel() if isinstance(module, nn.Linear) else output[0].numel() * module.weight[0].numel()
        counts["stem" if module is first else "rest"] += macs / (64 if isinstance(module, BinaryConv2d) else 1)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.device("meta"):
        meta = torch.empty(1, 3, size, size)
    model.to("meta")(meta)
    return counts["rest"], counts["stem"]


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [  # sections 4, 5 and 11 of the specification; the CIFAR forms, its section 11
        ("rf_c4d8_resnet37", 224, 45.919),
        ("bireal_resnet18", 224, 45.971),
        ("rf_c4d8_resnet37_cifar", 32, 14.89),
        ("bireal_resnet18_cifar", 32, 14.85),
        ("drf_c2d2_densenet51", 224, 143.432),
        ("binary_densenet51", 224, 144.115),
        ("drf_c2d2_densenet51_cifar", 32, 46.68),
        ("binary_densenet51_cifar", 32, 46.88),
    ],
)
def test_operations_of_the_published_names(name, size, millions):
    args = {"num_classes": 10} if size == 32 else {}
    assert operations(name, size, **args)[0] / 1e6 == pytest.approx(millions, rel=5e-4)


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("rf_c2d2_resnet21", "bireal_resnet18"),
        ("rf_c3d4_resnet21", "bireal_resnet18"),
        ("rf_c3d4_resnet37", "bireal_resnet18"),
        ("rf_c4d8_resnet37_w52", "bireal_resnet34"),
        ("rf_c2d2_resnet16_cifar", "bireal_resnet20_cifar"),
        ("rf_c3d4_resnet28_cifar", "bireal_resnet20_cifar"),
    ],
)
def test_the_family_keeps_the_budget(name, baseline):
    size = 32 if "cifar" in name else 224
    args = {"num_classes": 10} if size == 32 else {}
    assert operations(name, size, **args)[0] == pytest.approx(operations(baseline, size, **args)[0], rel=0.02)


def test_width_is_free():
    model = timm.create_model("rf_c4d8_resnet37_cifar", width=12, num_classes=5)
    assert model.fc.weight.shape == (5, 96) and model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "units", "layers"),
    [("rf_c4d8_resnet37", 4, 15), ("rf_c2d2_resnet21", 8, 3), ("drf_c2d2_densenet51", 23, 3)],
)
def test_units(name, units, layers):
    found = [m for m in timm.create_model(name).modules() if isinstance(m, FractalUnit)]
    assert [len(unit.layers) for unit in found] == [layers] * units


@pytest.mark.parametrize("shortcut", ["duplicate", "binary", "real"])
def test_downsampling_by_hand(shortcut):
    torch.manual_seed(0)
    layer = BinaryDownsample(4, 8, shortcut).eval()
    x = torch.randn(2, 4, 5, 7)
    pooled = nn.functional.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
    expected = torch.cat([pooled, pooled], 1) if layer.project is None else layer.project(pooled)
    torch.testing.assert_close(layer(x), layer.bn(layer.conv(x)) + expected)
    assert layer(x).shape == (2, 8, 3, 4)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="unknown shortcut 'none'"):
        BinaryDownsample(4, 8, "none")
    with pytest.raises(ValueError, match="cannot be duplicated from 4 to 6"):
        BinaryDownsample(4, 6)
    with pytest.raises(ValueError, match="global_drop_path"):
        timm.create_model("rf_c4d8_resnet37_cifar", global_drop_path=2)


@pytest.mark.parametrize(
    ("name", "size"),
    [("rf_c4d8_resnet37_cifar", {"width": 8}), ("drf_c2d2_densenet51_cifar", {"growth": 8, "layers": (2, 1, 1, 1)})],
)
def test_drop_path_is_for_training_alone(name, size):
    torch.manual_seed(0)
    model = timm.create_model(name, drop_path=0.15, global_drop_path=0.5, **size)
    x = torch.randn(4, 3, 16, 16)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train().set_grad_checkpointing()
    model(x).sum().backward()


def test_each_map_is_signed_once_in_the_engine():
    """63 binary convolutions have 35 distinct inputs (section 11)."""
    model = timm.create_model("rf_c4d8_resnet37_cifar", width=8).eval()
    program = leanconv.compile(model, torch.randn(2, 3, 16, 16))
    kinds = [op.kind for op in program.ops]
    assert kinds.count("binary_conv") == 63
    assert sum(step.kind == "sign" for op in program.ops for step in op.steps) == 35
    assert "elementwise" not in kinds  # joins happen while a convolution writes
