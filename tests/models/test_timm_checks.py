"""What timm checks of each of its models and the sweep of test_models.py does not, for every network we register.

timm's tests/test_models.py does it at pictures of the default size; here shapes are checked without numbers.
"""

import math

import pytest
import torch
from torch import fx, nn

from leanconv import nn as layers
from leanconv.models import list_models
from leanconv.nn import AWConv2d

import timm  # isort: skip

FAST = {  # one a family; the others are swept by `make test-all`
    "aw_mobilenetv2",
    "aw_resnet18",
    "aw_resnet20_cifar",
    "binary_densenet28_cifar",
    "bireal_digits",
    "fractalnet_cifar",
    "meliusnet22",
    "quicknet_small",
    "reactnet18_cifar",
    "reaf_plus_mobilenetv2",
    "reaf_resnet20_cifar",
    "resnete18",
    "rf_c2d2_resnet16_cifar",
}
SWEEP = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def without_numbers(name, **arguments):
    with torch.device("meta"):
        return timm.create_model(name, **arguments).eval()


def picture(name, batch=2):
    channels, side, _ = timm.get_pretrained_cfg(name).input_size
    side = min(side, 16 if side <= 32 else 64 if name.startswith("quicknet") else 40)
    return torch.randn(batch, channels, side, side)


@pytest.mark.parametrize("name", SWEEP)
def test_default_config(name):
    model = without_numbers(name)
    cfg = model.default_cfg
    assert cfg is model.pretrained_cfg and cfg["architecture"] == name
    assert cfg["num_classes"] == model.num_classes
    state = model.state_dict()
    assert state[f"{cfg['classifier']}.weight"].shape[0] == model.num_classes
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0]
    config = timm.data.resolve_data_config(model=model)
    assert config["input_size"] == cfg["input_size"] and config["mean"] == cfg["mean"] and config["std"] == cfg["std"]


@pytest.mark.parametrize("name", SWEEP)
def test_heads_at_the_default_size(name):
    model = without_numbers(name)
    x = torch.empty(1, *model.default_cfg["input_size"], device="meta")
    maps = model.forward_features(x)
    assert maps.shape[1:] == (model.num_features, *model.default_cfg["pool_size"])
    pooled = model.forward_head(maps, pre_logits=True)
    assert pooled.shape == (1, model.head_hidden_size)
    assert model(x).shape == (1, model.num_classes)
    model.reset_classifier(0)
    assert model.num_classes == 0 and model(x).shape == pooled.shape
    model.reset_classifier(0, "")
    assert model(x).shape == maps.shape
    assert without_numbers(name, num_classes=0)(x).shape == pooled.shape
    assert without_numbers(name, num_classes=0, global_pool="")(x).shape == maps.shape


@pytest.mark.parametrize("name", SWEEP)
def test_features_at_the_default_size(name):
    for getter in ({}, {"feature_cls": "getter"}):
        model = without_numbers(name, features_only=True, **getter)
        channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
        assert len(channels) >= 3 and reductions == sorted(reductions)
        _, *size = shape = model.default_cfg["input_size"]
        maps = model(torch.empty(1, *shape, device="meta"))
        assert [tuple(m.shape) for m in maps] == [
            (1, c, *(math.ceil(side / r) for side in size)) for c, r in zip(channels, reductions, strict=True)
        ]


@pytest.mark.parametrize("name", SWEEP)
def test_intermediates(name):
    model, x = timm.create_model(name).eval(), picture(name)
    with torch.inference_mode():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        assert len(maps) == len(model.feature_info) and all(torch.isfinite(m).all() for m in maps)
        indices = [0, len(maps) - 1]
        chosen = model.forward_intermediates(x, indices=indices, intermediates_only=True)
    assert all(torch.equal(m, maps[i]) for m, i in zip(chosen, indices, strict=True))


class Tracer(fx.Tracer):
    """Symbolic tracing as feature extraction has it: some layers and functions are taken as they are."""

    def __init__(self):
        super().__init__(autowrap_functions=tuple(timm.models.get_notrace_functions()), param_shapes_constant=True)

    def is_leaf_module(self, module, qualified_name):
        return type(module) in timm.models.get_notrace_modules() or super().is_leaf_module(module, qualified_name)


def assert_traces(model, x):
    if any(isinstance(module, AWConv2d) for module in model.modules()):
        model, x = model.double(), x.double()  # in float32 one native call may compute what is traced as modules
    traced = fx.GraphModule(model, Tracer().trace(model))
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(traced(x), expected)


@pytest.mark.parametrize("name", SWEEP)
def test_symbolic_tracing(name):
    model, x = timm.create_model(name), picture(name)
    with torch.inference_mode():
        for training in (False, True):
            assert_traces(model.train(training), x)


def test_symbolic_tracing_of_layers_in_another_network():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        layers.RSign(8),
        layers.BinaryConv2d(8, 8, 3, binarize_input=None),
        layers.RPReLU(8),
        layers.BinaryConvTranspose2d(8, 8, 2, 2),
        layers.ReafConv2d(8, 8, 3, sets=4, window=4, shift=2),
        layers.AWConv2d(8, 16, 3),
        layers.AAConv2d(16, 16, 3, num_heads=2, feat_size=4),
        layers.BAM(16),
        nn.Flatten(2),
        layers.BinaryConv1d(16, 4, 3),
        nn.Flatten(),
        layers.BinaryLinear(4 * 62, 5),
    )
    assert_traces(network, torch.randn(2, 3, 10, 10))


@pytest.mark.parametrize("name", ["rf_c2d2_resnet16_cifar", "fractalnet_cifar"])
@pytest.mark.parametrize("merged", [True, False])
def test_symbolic_tracing_with_drop_path(name, merged):
    """Drawn anew for each batch, not once in the tracing."""
    model = timm.create_model(name, drop_path=0.3, global_drop_path=0.5, merged=merged, num_classes=5)
    with torch.inference_mode():
        assert_traces(model.train(), picture(name, batch=3))


def kept_for_backward(model, x):
    """Bytes that a forward pass keeps of its activations."""
    held = {}
    own = {t.untyped_storage().data_ptr() for t in [x, *model.parameters(), *model.buffers()]}

    def pack(t):
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    return sum(size for pointer, size in held.items() if pointer not in own)


@pytest.mark.parametrize("name", SWEEP)
def test_gradient_checkpointing_changes_nothing_but_memory(name):
    model, x = timm.create_model(name, num_classes=5), picture(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    outputs, grads, kept = [], [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        kept.append(kept_for_backward(model, x))
        model.load_state_dict(state)  # batch norm has seen the pictures
        torch.manual_seed(1)
        outputs.append(model(x))
        outputs[-1].mean().backward()
        grads.append({key: p.grad.clone() for key, p in model.named_parameters()})
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(grads[0], grads[1])
    assert kept[1] < 0.8 * kept[0]
    model.eval()
    with torch.inference_mode():
        checkpointed = model(x)
        model.set_grad_checkpointing(False)
        assert torch.equal(checkpointed, model(x))
