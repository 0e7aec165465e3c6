"""Networks of the literature against their published counts, and their blocks by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leanconv import models  # noqa: F401
from leanconv.compiler import compile
from leanconv.complexity import complexity
from leanconv.models.meliusnet import MeliusUnit
from leanconv.models.quicknet import Blur, QuickNetLayer, QuickNetTransition
from leanconv.models.reactnet import ReActBlock
from leanconv.nn import BinaryConv2d

import timm  # isort: skip


def macs(name, size):
    """(binary MACs, float MACs, those of the first convolution) at size x size, counted by hooks."""
    model = timm.create_model(name, num_classes=10 if size == 32 else 1000)
    first = model.get_submodule(timm.get_pretrained_cfg(name).first_conv)
    counts = {"binary": 0, "float": 0, "first": 0}

    def count(module, inputs, output):
        n = module.weight.numel() if isinstance(module, nn.Linear) else output[0].numel() * module.weight[0].numel()
        counts["binary" if isinstance(module, BinaryConv2d) else "float"] += n
        counts["first"] += n if module is first else 0

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval().to("meta")(torch.empty(1, 3, size, size, device="meta"))
    return counts["binary"], counts["float"], counts["first"]


@pytest.mark.parametrize(
    ("name", "size", "without_stem", "total"),
    [  # millions of OPs; SoFAr specification, sections 4 and 11, from which the names' lists were also inferred
        ("binary_densenet28", 224, 140.52, 258.54),
        ("binary_densenet37", 224, None, 270.2),
        ("binary_densenet51", 224, 144.115, 262.13),
        ("binary_densenet51_cifar", 32, 46.88, None),
        ("resnete18", 224, 45.971, 163.985),
        ("reactnet18", 224, None, 163),  # published: 1.63e8
        ("meliusnet22", 224, None, 208),  # published: 2.08e8
    ],
)
def test_operations(name, size, without_stem, total):
    binary, real, first = macs(name, size)
    ops = binary / 64 + real
    if total is not None:
        assert ops / 1e6 == pytest.approx(total, rel=0.007 if total == 163 else 0.005)
    if without_stem is not None:
        assert (ops - first) / 1e6 == pytest.approx(without_stem, rel=1e-4)


@pytest.mark.parametrize(("name", "billions"), [("quicknet", 1.85), ("quicknet_large", 3.7)])
def test_quicknet_layers_all_cost_the_same(name, billions):
    """116 M binary MACs a layer, 16 of them in QuickNet."""
    with torch.device("meta"):
        layers = sum(isinstance(m, BinaryConv2d) for m in timm.create_model(name).modules())
    binary = macs(name, 224)[0]
    assert binary == layers * 56 * 56 * 64 * 64 * 9 and binary / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize(
    ("name", "published", "statistics"),
    [  # larq/zoo's tables: weights; with running statistics in the older ones
        ("binary_densenet28", 5_150_504, True),
        ("binary_densenet37", 8_734_120, True),
        ("binary_densenet45", 13_939_240, True),
        ("resnete18", 11_699_368, True),
        ("meliusnet22", 6_944_584, False),
        ("quicknet_small", 12_655_688, False),
        ("quicknet", 13_234_088, False),
        ("quicknet_large", 23_342_248, False),
    ],
)
def test_parameters(name, published, statistics):
    model = timm.create_model(name)
    count = sum(p.numel() for p in model.parameters())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and (statistics or not module.affine):
            count += 2 * module.num_features
        if isinstance(module, Blur):
            count += module.kernel.numel()
    assert count == published


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mebibytes"), [("quicknet", 4.17), ("meliusnet22", 3.88)])
def test_size_of_the_program(name, mebibytes):
    """As published by larq/zoo, whose megabytes are mebibytes and whose QuickNet counts the blur's fixed weights."""
    program = compile(timm.create_model(name).eval(), torch.zeros(1, 3, 64, 64), verify=False)
    counts = complexity(program, (224, 224))
    assert counts["bytes_memory"] / 2**20 == pytest.approx(mebibytes, abs=0.02)
    binary, real, _ = macs(name, 224)
    blurs = 9 * (28**2 * 64 + 14**2 * 128 + 7**2 * 256) if name == "quicknet" else 0
    assert (counts["macs_binary"], counts["macs_real"]) == (binary, real + blurs)


def sgn(x):
    return torch.where(x >= 0, 1.0, -1.0)


def unsettle(model):
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.5, 2)
            if m.affine:
                nn.init.uniform_(m.weight)
                nn.init.uniform_(m.bias)
    return model.eval()


def test_quicknet_layer_by_hand():
    torch.manual_seed(0)
    layer = unsettle(QuickNetLayer(6))
    x = torch.randn(2, 6, 4, 5)
    sums = F.conv2d(F.pad(sgn(x), (1, 1, 1, 1), value=1.0), sgn(layer.conv.weight))
    torch.testing.assert_close(layer(x), layer.bn(sums.clamp(min=0)) + x)


def test_quicknet_transition_by_hand():
    torch.manual_seed(0)
    layer = unsettle(QuickNetTransition(2, 3))
    x = torch.randn(1, 2, 6, 8)
    high = torch.stack([x[:, :, i : i + 5, j : j + 7] for i in (0, 1) for j in (0, 1)]).amax(0).clamp(min=0)
    high = F.pad(high, (1, 1, 1, 1))
    blurred = torch.zeros(1, 2, 3, 4)
    for i, a in enumerate((1, 2, 1)):
        for j, b in enumerate((1, 2, 1)):
            blurred += a * b / 16 * high[:, :, i : i + 5 : 2, j : j + 7 : 2]
    torch.testing.assert_close(layer.blur(layer.pool(layer.act(x))), blurred)
    torch.testing.assert_close(layer(x), layer.bn(layer.conv(blurred)))


def test_melius_unit_is_a_dense_block_and_an_improvement_block():
    """In the paper's form: y = concat(x, dense(x)); then the last channels of y become better."""
    torch.manual_seed(0)
    unit = unsettle(MeliusUnit(6, 4))
    x = torch.randn(2, 6, 5, 5)

    def binary(layer, t):
        return F.conv2d(sgn(layer.bn(t)), sgn(layer.conv.weight), padding=1)

    y = torch.cat([x, binary(unit.dense, x)], 1)
    y = y + F.pad(binary(unit.improve, y), (0, 0, 0, 0, 6, 0))
    assert torch.equal(torch.cat([x, unit(x)], 1), y)


def test_react_block_by_hand():
    torch.manual_seed(0)
    block = unsettle(ReActBlock(5, 5))
    for name, p in block.named_parameters():
        if "shift" in name or "slope" in name:
            nn.init.uniform_(p, -0.5, 0.5)

    def half(x, conv, bn, act):
        weight = conv.weight.abs().mean((1, 2, 3), keepdim=True) * sgn(conv.weight)
        y = bn(F.conv2d(sgn(x + conv.binarize_input.shift.view(1, -1, 1, 1)), weight, padding=1)) + x
        a, s, b = (v.view(1, -1, 1, 1) for v in (act.shift_in, act.slope, act.shift_out))
        return torch.where(y + a >= 0, y + a, s * (y + a)) + b

    x = torch.randn(2, 5, 4, 4)
    expected = half(half(x, block.conv1, block.bn1, block.act1), block.conv2, block.bn2, block.act2)
    torch.testing.assert_close(block(x), expected)


def test_resnete_ends_with_a_relu_and_normalises_after_pooling():
    model = timm.create_model("resnete18").eval()
    x = torch.randn(1, 3, 64, 64)
    assert model.forward_features(x).min() >= 0
    assert isinstance(model.maxpool[1], nn.BatchNorm2d) and isinstance(model.act1, nn.ReLU)
    clips = {m.binarize_weight.clip for m in model.modules() if isinstance(m, BinaryConv2d)}
    assert clips == {1.25}


def test_fractalnet_depth_and_pooling():
    model = timm.create_model("fractalnet_cifar", channels=(4, 8, 8, 8, 8)).eval()
    units = [m for m in model.modules() if type(m).__name__ == "FractalUnit"]
    assert sum(unit.depth for unit in units) == 20 and {len(unit.layers) for unit in units} == {7}
    assert model.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 8, 1, 1)
    big = timm.create_model("fractalnet", channels=(4, 8, 8, 8))
    assert 2 + sum(m.depth for m in big.modules() if type(m).__name__ == "FractalUnit") == 34


def test_fractalnet_drop_path_is_for_training_alone():
    torch.manual_seed(0)
    args = {"channels": (4, 8, 8, 8, 8), "dropout": (0, 0.1, 0.2, 0.3, 0.4), "drop_path": 0.15, "global_drop_path": 0.5}
    model = timm.create_model("fractalnet_cifar", **args)
    x = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.set_grad_checkpointing()
    model(x).sum().backward()
    model.eval()
    assert torch.equal(model(x), model(x))
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)][::7] == [0, 0.1, 0.2, 0.3, 0.4]
    with pytest.raises(ValueError, match="5 blocks need 5 dropouts"):
        timm.create_model("fractalnet_cifar", dropout=(0.1, 0.2))
    with pytest.raises(ValueError, match="unknown stem 'cifar'"):
        timm.create_model("fractalnet_cifar", stem="cifar")


def test_a_column_alone_leaves_the_others_without_gradient(monkeypatch):
    model = timm.create_model("fractalnet_cifar", channels=(4,) * 5, columns=2, global_drop_path=1.0)
    monkeypatch.setattr(
        "leanconv.models.global_drop_path.draw_columns", lambda x, columns, share: torch.ones(len(x), dtype=torch.long)
    )
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for name, p in model.named_parameters():
        if name.endswith("conv.weight"):
            assert bool(p.grad.any()) == ("c1p2" in name)


def test_quicknet_says_what_does_not_fit():
    with pytest.raises(ValueError, match="one width a section: got 4 sections and 2 widths"):
        timm.create_model("quicknet", channels=(8, 16))
