"""The networks with attention on weights: parameters, which layers, and the wiring with other attention."""

import functools

import pytest
import torch
from torch import nn

from leanconv.models import list_models
from leanconv.models.aw_cifar import AWResidualNet, AWWideResNet
from leanconv.models.aw_resnet import AWResNet
from leanconv.models.cifar_resnet import BasicBlock
from leanconv.models.wide_resnet import PreActBlock, WideResNet
from leanconv.nn.augmented_attention import AAConv2d
from leanconv.nn.aw_conv import AWConv2d
from leanconv.nn.bam import BAM

import timm  # isort: skip
from timm.models.resnet import Bottleneck  # isort: skip

PLAIN = {  # what the network is without attention on weights
    "aw_resnet18": "resnet18",
    "aw_resnet34": "resnet34",
    "aw_resnet50": "resnet50",
    "aw_resnet101": "resnet101",
    "aw_resnext50_32x4d": "resnext50_32x4d",
    "aw_se_resnet50": "seresnet50",
    "aw_se_resnet101": "seresnet101",
    "aw_mobilenetv1": "mobilenetv1_100",
    "aw_mobilenetv2": "mobilenetv2_100",
    "aw_resnet20_cifar": "resnet20_cifar",
    "aw_resnet56_cifar": "resnet56_cifar",
    "aw_se_resnet20_cifar": "se_resnet20_cifar",
    "aw_se_resnet56_cifar": "se_resnet56_cifar",
    "aw_cbam_resnet20_cifar": "cbam_resnet20_cifar",
    "aw_cbam_resnet56_cifar": "cbam_resnet56_cifar",
    "aw_wrn28_10": "wrn28_10_cifar",
}
WITHOUT_PLAIN = {"aw_aa_resnet50", "aw_bam_resnet50", "aw_cbam_resnet50", "aw_eca_resnet50"}


def fresh(name, **args):
    """A network without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name, **args)


meta = functools.cache(fresh)


def count(model):
    return sum(p.numel() for p in model.parameters())


def wrapped(model):
    """The convolutions of a plain network that have attention: 3x3, in a stage."""
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and name.startswith(("layer", "blocks"))
    }


def extra(conv, ratio=16):
    """The specification's section 5: two 1x1 convolutions and two batch norms."""
    hidden = max(conv.in_channels // ratio, 1)
    return conv.in_channels * hidden + hidden * conv.out_channels + 2 * hidden + 2 * conv.out_channels


def test_every_network_is_here():
    assert {n for n in list_models() if n.startswith("aw_")} == set(PLAIN) | WITHOUT_PLAIN


@pytest.mark.parametrize("name", PLAIN)
def test_attention_is_where_it_should_be(name):
    plain, model = meta(PLAIN[name]), meta(name)
    expected = wrapped(plain)
    assert {n for n, m in model.named_modules() if isinstance(m, AWConv2d)} == set(expected)
    assert count(model) == count(plain) + sum(extra(conv) for conv in expected.values())


@pytest.mark.parametrize("name", ["aw_resnet20_cifar", "aw_wrn28_10", "aw_mobilenetv1", "aw_resnet18"])
def test_arguments_reach_the_layers(name):
    plain = meta(PLAIN[name])
    halved = fresh(name, aw_args={"rd_ratio": 32})
    assert count(halved) == count(plain) + sum(extra(conv, 32) for conv in wrapped(plain).values())


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("aw_resnet50", 25_722_240),
        ("aw_resnet101", 44_862_880),
        ("aw_resnext50_32x4d", 25_673_688),
        ("aw_mobilenetv1", 4_591_316),
        ("wrn28_10_cifar", 36_479_194),
        ("resnet56_cifar", 855_770),
    ],
)
def test_parameters(name, parameters):
    assert count(meta(name)) == parameters


@pytest.mark.parametrize("name, added", [("aw_resnext50_32x4d", 0.6448), ("aw_mobilenetv1", 0.3593)])
def test_added_parameters_of_the_specification(name, added):
    assert round((count(meta(name)) - count(meta(PLAIN[name]))) / 1e6, 4) == added


@pytest.mark.parametrize(
    "args, parameters",  # section 5 of the specification
    [
        ({"share": "out"}, 25.72),
        ({"share": "taps"}, 25.64),
        ({"share": "none"}, 60.18),
        ({"norm_layer": nn.Identity}, 25.71),
        ({"rd_ratio": 4}, 26.20),
        ({"rd_ratio": 8}, 25.88),
        ({"rd_ratio": 32}, 25.64),
    ],
)
def test_parameters_of_other_settings(args, parameters):
    assert round(count(fresh("aw_resnet50", aw_args=args)) / 1e6, 2) == parameters


@pytest.mark.parametrize("attention, per_block", [("se", "fc1"), ("cbam", "channel.fc1")])
def test_reduction_is_sixteen(attention, per_block):
    for stage in (1, 2, 3, 4):
        block = meta(f"aw_{attention}_resnet50").get_submodule(f"layer{stage}.1")
        assert block.se.get_submodule(per_block).out_channels == block.conv3.out_channels // 16
    for stage, hidden in ((1, 1), (2, 2), (3, 4)):
        block = meta(f"aw_{attention}_resnet20_cifar").get_submodule(f"layer{stage}.1")
        assert block.attn.get_submodule(per_block).out_channels == hidden


def test_eca():
    plain, model = meta("aw_resnet50"), meta("aw_eca_resnet50")
    kernels = [m.conv.weight.numel() for n, m in model.named_modules() if n.endswith(".se")]
    assert len(kernels) == 16 and count(model) == count(plain) + sum(kernels)


def test_bam_ends_the_first_three_stages():
    model, plain = meta("aw_bam_resnet50"), meta("aw_resnet50")
    bams = {name: m for name, m in model.named_modules() if isinstance(m, BAM)}
    assert list(bams) == ["layer1.3", "layer2.4", "layer3.6"]
    assert count(model) == count(plain) + sum(count(m) for m in bams.values())
    assert [m.channel[0].in_channels for m in bams.values()] == [256, 512, 1024]
    assert fresh("aw_bam_resnet50", bam_args={"rd_ratio": 32}).layer2[-1].channel[0].out_channels == 16
    assert sum(isinstance(m, AWConv2d) for m in model.modules()) == 16


def test_self_attention_is_beside_the_convolution_in_the_last_three_stages():
    model, plain = meta("aw_aa_resnet50"), meta("resnet50")
    augmented = {name: m for name, m in model.named_modules() if isinstance(m, AAConv2d)}
    assert set(augmented) == {name for name in wrapped(plain) if name[5] in "234"}
    assert all(type(m.conv) is AWConv2d for m in augmented.values())
    assert sum(isinstance(m, AWConv2d) for m in model.modules()) == 16
    expected = count(plain)
    for name, conv in wrapped(plain).items():
        channels = conv.out_channels
        dv = {"1": 0, "2": 16, "3": 24, "4": 48}[name[5]]
        hidden = channels // 16
        expected += channels * hidden + (hidden + 2) * (channels - dv) + 2 * hidden  # AW on the filters that are left
        if dv:
            side = {"2": 28, "3": 14, "4": 7}[name[5]]
            expected += channels * (2 * 160 + dv) + dv**2 + 2 * (2 * side - 1) * 20 - 9 * channels * dv
    assert count(model) == expected
    assert round((expected - sum(extra(c) for c in wrapped(plain).values())) / 1e6, 1) == 25.8  # as published [recall]


def test_self_attention_has_a_vector_for_each_distance():
    seen = []
    model = fresh("aw_aa_resnet50").eval()
    for m in model.modules():
        if isinstance(m, AAConv2d):
            m.position.register_forward_hook(lambda m, args, y: seen.append((m.size, args[1:])))
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert len(seen) == 13 and all(size == actual for size, actual in seen)
    pooled = fresh("aw_aa_resnet50", aa_args={"pool": 2})
    assert all(m.enlarge for m in pooled.modules() if isinstance(m, AAConv2d))


@pytest.mark.parametrize("name", ["aw_resnet20_cifar", "aw_se_resnet20_cifar", "aw_cbam_resnet20_cifar"])
def test_equal_seeds_and_an_identical_start_give_the_plain_network(name):
    x = torch.randn(2, 3, 14, 14)
    torch.manual_seed(5)
    plain = timm.create_model(PLAIN[name]).eval()
    torch.manual_seed(5)
    model = timm.create_model(name, aw_args={"start": "identity"}).eval()
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)
    torch.manual_seed(5)
    half = timm.create_model(name).eval()
    assert not torch.allclose(half(x), plain(x), rtol=1e-2)


def test_classes_take_the_arguments_of_the_plain_ones():
    torch.manual_seed(0)
    plain = WideResNet((1, 2), (8, 16), stem_width=4, num_classes=3, in_chans=1).eval()
    torch.manual_seed(0)
    wide = AWWideResNet((1, 2), (8, 16), stem_width=4, num_classes=3, in_chans=1, aw_args={"start": "identity"}).eval()
    x = torch.randn(2, 1, 9, 8)
    torch.testing.assert_close(wide(x), plain(x), rtol=1e-4, atol=1e-4)
    small = AWResidualNet(BasicBlock, (1, 1), (8, 16), stem="cifar", in_chans=1, num_classes=3, attn_layer="eca")
    assert small(x).shape == (2, 3)
    deep = AWResNet(Bottleneck, (1, 1, 1, 1), channels=(8, 8, 8, 8), in_chans=1, num_classes=3, bam_args={})
    assert deep(torch.randn(2, 1, 33, 40)).shape == (2, 3)


def test_pre_activation_block_by_hand():
    torch.manual_seed(0)
    for block in (PreActBlock(4, 6, stride=2), PreActBlock(4, 4), PreActBlock(4, 6)):
        block.double().eval()
        for bn in (block.bn1, block.bn2):
            nn.init.uniform_(bn.weight)
            nn.init.uniform_(bn.bias, -1, 1)
            bn.running_mean.uniform_(-1, 1)
            bn.running_var.uniform_(0.5, 2)
        x = torch.randn(2, 4, 7, 5, dtype=torch.float64)

        def ready(t, bn):
            t = (t - bn.running_mean.view(-1, 1, 1)) / torch.sqrt(bn.running_var + bn.eps).view(-1, 1, 1)
            return (t * bn.weight.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)).relu()

        stride = block.conv1.stride[0]
        y = nn.functional.conv2d(ready(x, block.bn1), block.conv1.weight, stride=stride, padding=1)
        y = nn.functional.conv2d(ready(y, block.bn2), block.conv2.weight, padding=1)
        shortcut = x
        if block.downsample is not None:
            thinned = ready(x, block.bn1)[:, :, ::stride, ::stride]
            shortcut = torch.einsum("oc,nchw->nohw", block.downsample.weight[:, :, 0, 0], thinned)
        torch.testing.assert_close(block(x), y + shortcut)


class Nothing(nn.Module):
    def forward(self, x):
        return 0 * x


def test_attention_of_a_basic_block_acts_on_the_branch():
    block = BasicBlock(4, 4, attn_layer=lambda channels: Nothing())
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), x.relu())
    assert not any("attn" in key for key in BasicBlock(4, 4).state_dict())
    assert BasicBlock(4, 4).attn is None


def test_unknown_attention():
    with pytest.raises(ValueError, match="unknown attention 'sw': expected one of se, cbam, eca"):
        timm.create_model("resnet20_cifar", attn_layer="sw")


@pytest.mark.parametrize("name", ["aw_mobilenetv1", "aw_mobilenetv2"])
def test_mobilenet(name):
    """timm's interface: features, classifier, gradients."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5)
    x = torch.randn(2, 3, 40, 40)
    model(x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name and model.get_submodule(cfg["classifier"]).out_features == 5
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    features = timm.create_model(name, features_only=True, in_chans=1).eval()
    maps = features(torch.randn(1, 1, 64, 64))
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert [64 // m.shape[2] for m in maps] == features.feature_info.reduction() == [2, 4, 8, 16, 32]
