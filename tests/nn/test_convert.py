import warnings

import pytest
import torch
from torch import nn

import leanconv
from leanconv import models  # noqa: F401  (before timm)
from leanconv.nn import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryConvTranspose2d,
    BinaryLinear,
    ConvertError,
    MagnitudeWeight,
    RSign,
    convert,
    convertible,
    weight_scale,
)

import timm  # isort: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Convolutions of several kinds, declared in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, bias=False),
            nn.Conv2d(8, 12, (3, 1), padding="same", dilation=(2, 1)),
        )
        self.up = nn.ConvTranspose2d(12, 4, 3, stride=2, padding=1, output_padding=1, dilation=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.up(self.body(self.stem(x))).mean((2, 3)))


def test_resnet18_keeps_weights_trains_and_compiles():
    model = timm.create_model("resnet18", num_classes=3, act_layer="prelu", zero_init_last=False)
    before = {key: (p, p.detach().clone()) for key, p in model.named_parameters()}
    keys = list(model.state_dict())
    names = convertible(model, BinaryConv2d)
    assert convert(model, BinaryConv2d, binarize_weight="magnitude") is model
    binary = {key: m for key, m in model.named_modules() if isinstance(m, BinaryConv2d)}
    assert list(binary) == names and len(names) == 19  # 16 of the blocks, 3 of the shortcuts
    assert type(model.conv1) is nn.Conv2d and type(model.fc) is nn.Linear
    assert list(model.state_dict()) == keys
    for key, p in model.named_parameters():
        assert p is before[key][0] and torch.equal(p, before[key][1])
    assert binary["layer2.0.conv1"].stride == (2, 2) and binary["layer2.0.conv1"].padding == (1, 1)

    x = torch.randn(2, 3, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    moved = [key for key in names if not torch.equal(model.get_submodule(key).weight, before[f"{key}.weight"][1])]
    assert moved == names
    program = leanconv.compile(model.eval(), x)  # compares with torch, operator by operator
    assert sum(op.kind == "binary_conv" for op in program.ops) == 19


def test_a_float_checkpoint_fits():
    state = timm.create_model("resnet18", num_classes=3, act_layer="prelu").state_dict()
    model = convert(timm.create_model("resnet18", num_classes=3, act_layer="prelu"), BinaryConv2d)
    model.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_the_new_layer_computes_with_the_old_weight():
    old = nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)
    x, w, b = torch.randn(2, 6, 7, 7), old.weight.detach().clone(), old.bias.detach().clone()
    layer = convert(old, BinaryConv2d, skip=(), binarize_weight="magnitude")
    signs = torch.where(w >= 0, 1.0, -1.0)
    expected = nn.functional.conv2d(torch.where(x >= 0, 1.0, -1.0), signs, stride=2, padding=1, groups=2)
    expected = expected * weight_scale(w, "magnitude").view(1, -1, 1, 1) + b.view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), expected)


def test_mobilenet_by_pattern():
    model = timm.create_model("mobilenetv2_100", num_classes=3, act_layer="prelu")
    names = convertible(model, BinaryConv2d, skip=("first", "last", "*.conv_dw", "blocks.0"))
    assert names and not [n for n in names if n.endswith("conv_dw") or n.startswith("blocks.0.")]
    convert(model, BinaryConv2d, only=["blocks.1", "conv_head"])
    binary = [key for key, m in model.named_modules() if isinstance(m, BinaryConv2d)]
    assert binary == [*(n for n in binary if n.startswith("blocks.1.")), "conv_head"] and len(binary) == 7
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.conv_head.weight.grad is not None


def test_dense_layers_of_a_transformer():
    model = timm.create_model("test_vit", num_classes=3)
    head, qkv = model.head, model.blocks[0].attn.qkv
    convert(model, BinaryLinear, only=["blocks.*.attn.*", "blocks.0.mlp"])
    assert isinstance(model.blocks[0].attn.qkv, BinaryLinear) and model.blocks[0].attn.qkv.bias is qkv.bias
    assert isinstance(model.blocks[0].mlp.fc1, BinaryLinear) and type(model.blocks[1].mlp.fc1) is nn.Linear
    assert model.head is head
    x = torch.randn(2, 3, *model.pretrained_cfg["input_size"][1:])
    model(x).square().sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_other_kinds_of_layers():
    model = Net()
    assert convertible(model, BinaryConv2d) == ["body.0", "body.1"]
    assert convertible(model, BinaryConv2d, skip=()) == ["stem", "body.0", "body.1"]
    assert convertible(model, BinaryConvTranspose2d) == ["up"]
    x = torch.randn(2, 3, 8, 8)
    shapes = [model.body(model.stem(x)).shape, model.up(model.body(model.stem(x))).shape]
    convert(convert(model, BinaryConv2d), BinaryConvTranspose2d)
    assert [model.body(model.stem(x)).shape, model.up(model.body(model.stem(x))).shape] == shapes
    assert model.body[0].bias is None and model.up.bias is not None
    with pytest.raises(ConvertError, match=r"Net has no Linear to replace by BinaryLinear \(1 left out by skip"):
        convertible(model, BinaryLinear)
    one = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=2, dilation=2), nn.Conv1d(4, 2, 1))
    assert convert(one, BinaryConv1d)[1](torch.randn(2, 4, 9)).shape == (2, 4, 9)


def test_a_second_call_finds_nothing_left():
    model = convert(Net(), BinaryConv2d)
    with pytest.raises(ConvertError, match="no Conv2d to replace"):
        convert(model, BinaryConv2d)


def test_training_mode_device_and_dtype():
    model = Net().double()
    model.body[0].eval()
    convert(model, BinaryConv2d, binarize_input="rsign")
    assert not model.body[0].training and model.body[1].training
    assert model.body[0].binarize_input.shift.dtype == torch.float64
    meta = convert(Net().to("meta"), BinaryConv2d, binarize_input="rsign")
    assert meta.body[0].weight.device.type == meta.body[0].binarize_input.shift.device.type == "meta"


def test_modules_among_the_arguments_are_not_shared():
    model = convert(
        Net(), BinaryConv2d, skip=("first",), binarize_input=RSign(8), binarize_weight=MagnitudeWeight(detach=False)
    )
    first, second = model.body
    assert first.binarize_input is not second.binarize_input
    assert first.binarize_weight is not second.binarize_weight and not first.binarize_weight.detach


def test_a_shared_layer_stays_shared():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), shared, nn.Tanh(), nn.Sequential(shared), nn.Conv2d(4, 4, 1))
    convert(model, BinaryConv2d)
    assert isinstance(model[1], BinaryConv2d) and model[3][0] is model[1] and model[1].weight is shared.weight
    model = nn.Sequential(nn.Conv2d(4, 4, 1), shared, nn.Tanh(), nn.Sequential(shared), nn.Conv2d(4, 4, 1))
    with pytest.raises(ConvertError, match="Sequential has no Conv2d to replace"):
        convert(model, BinaryConv2d, skip=("first", "last", "3.0"))  # under one of its names is under all


def test_layers_that_compute_something_else_stay():
    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=3)
    same = [key for key, m in model.named_modules() if type(m).__name__ == "Conv2dSame"]
    assert len(same) > 1 and not set(same) & set(convertible(model, BinaryConv2d))
    with pytest.raises(ConvertError, match=f"'{same[1]}' matches no Conv2d .* but Conv2dSame"):
        convert(model, BinaryConv2d, only=[same[1]])
    attention = nn.MultiheadAttention(8, 2)  # its out_proj is read, never called
    with pytest.raises(ConvertError, match="no Linear"):
        convertible(attention, BinaryLinear, skip=())


class Doubled(nn.Module):
    """A layer that is no subclass of what it replaces."""

    replaces = nn.Conv2d

    def __init__(self, inner: nn.Conv2d, factor: float) -> None:
        super().__init__()
        self.weight, self.bias, self.inner_stride, self.factor = inner.weight, inner.bias, inner.stride, factor

    @classmethod
    def from_layer(cls, old: nn.Conv2d, factor: float = 2.0) -> "Doubled":
        return cls(old, factor)

    def forward(self, x):
        return self.factor * nn.functional.conv2d(x, self.weight, self.bias, self.inner_stride, padding=1)


class Plain(nn.Conv2d):
    """A layer with fewer options than nn.Conv2d."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias=True):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)


class Halved(nn.Conv2d):
    """A layer without a bias, whose weight is not what it replaces had."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1):
        super().__init__(in_channels, out_channels // 2, kernel_size, stride, padding, dilation, groups, bias=False)


def test_layers_of_other_authors():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    x = torch.randn(1, 2, 5, 5)
    expected = model[2](3 * model[1](model[0](x)))
    torch.testing.assert_close(convert(model, Doubled, factor=3.0)(x), expected)
    net = Net()
    with pytest.raises(ConvertError, match=r"layer body\.0 has groups=2, which Plain lacks; add its name to skip"):
        convert(net, Plain)
    assert type(net.body[1]) is nn.Conv2d  # all or nothing
    with pytest.raises(ConvertError, match=r"layer body\.1 has dilation="):
        convert(net, Plain, skip=["body.0"])
    with pytest.raises(ConvertError, match=r"layer 0: Halved has a weight of another shape"):
        convert(nn.Sequential(*net.body), Halved, skip=["1"])
    with pytest.raises(ConvertError, match="layer stem has bias=True, which Halved lacks"):
        convert(net, Halved, only=["stem"], skip=())
    with pytest.raises(ConvertError, match="BatchNorm2d does not say what it replaces"):
        convert(net, nn.BatchNorm2d)


def hooked():
    net = Net()
    net.body[0].register_forward_hook(lambda *_: None)
    return net


def normed():
    net = Net()
    nn.utils.parametrizations.weight_norm(net.body[0])
    return net


def reflecting():
    net = Net()
    net.body[0] = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    return net


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Net, {"only": ["bodi.0"]}, "only: 'bodi.0' matches no module; near are body.0"),
        (Net, {"skip": ["frist"]}, "skip: 'frist' matches no module"),
        (Net, {"only": ["head"]}, "only: 'head' matches no Conv2d that BinaryConv2d could replace, but Linear"),
        (Net, {"skip": "first"}, "lists of names and patterns"),
        (Net, {"skip": ["first", "body"]}, "Net has no Conv2d to replace by BinaryConv2d"),
        (Net, {"binarize_weight": "magnitud"}, "layer body.0: .* did you mean 'magnitude'"),
        (Net, {"binarise": "x"}, "layer body.0: BinaryConv2d cannot be made .* 'binarise'"),
        (hooked, {}, "layer body.0 would lose its hooks"),
        (normed, {}, "layer body.0 would lose its parametrizations"),
        (reflecting, {}, "layer body.0 would lose its padding_mode='reflect'; or add its name to skip"),
    ],
)
def test_refusals_change_nothing(make, arguments, message):
    model = make()
    before = list(model.modules())
    with pytest.raises(ConvertError, match=message) as error:
        convert(model, BinaryConv2d, **arguments)
    assert "\n" not in str(error.value)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


def test_warns_of_inputs_that_are_never_negative():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    with pytest.warns(UserWarning, match="sees \\+1 everywhere"):
        convert(model, BinaryConv2d)
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, BinaryConv2d, binarize_input="rsign")


def test_names_that_timm_declares():
    """The classifier need not be the last layer that was declared."""
    model = Net()
    model.pretrained_cfg = {"first_conv": "body.0", "classifier": ("body.1", "head")}
    assert convertible(model, BinaryConv2d) == ["stem"]
    assert convertible(timm.create_model("resnet18", num_classes=0), BinaryConv2d)[-1] == "layer4.1.conv2"
