import copy

import pytest
import torch
from torch import nn

from leanconv.nn import BinaryConv2d, RSign
from leanconv.train import state
from leanconv.train.bop import Bop
from leanconv.train.optimizers import binary_parameters, clip_latent_weights, create_optimizers, set_learning_rates
from leanconv.train.recipe import RecipeError, make_recipe

import timm  # isort: skip


def recipe(**entries):
    return make_recipe({"model": "bireal_digits", "data": "digits", "epochs": 1, "learning_rate": 0.01} | entries)


class Small(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            BinaryConv2d(4, 4, 3, binarize_input=RSign(4), binarize_weight="magnitude"),
            nn.Flatten(),
            nn.Linear(16, 3),
        )


LATENT = {"2.weight"}
MATRICES = {"0.weight", "4.weight"}


def placed(model, optimizers):
    """name -> (number of optimizer, learning rate, weight decay)"""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for i, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert names[id(p)] not in found
                found[names[id(p)]] = (i, group["lr"], group.get("weight_decay"))
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


def train(model, optimizers, steps):
    for step in steps:
        torch.manual_seed(step)
        set_learning_rates(optimizers, 1 / (1 + step))
        model(torch.randn(4, 2, 6, 6)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_weight_decay_spares_binary_weights_and_vectors():
    model = timm.create_model("bireal_digits")
    optimizers = create_optimizers(model, recipe(weight_decay=0.1, optimizer="adamw"))
    assert len(optimizers) == 1 and type(optimizers[0]) is torch.optim.AdamW
    decayed = {name for name, (_, _, decay) in placed(model, optimizers).items() if decay}
    assert decayed == {"conv1.weight", "layer2.0.downsample.1.weight", "layer3.0.downsample.1.weight", "fc.weight"}


def test_binary_weights_have_a_group_of_their_own():
    model = Small()
    special = {"learning_rate": 0.001, "weight_decay": 0.25}
    (optimizer,) = create_optimizers(model, recipe(weight_decay=0.1, binary_weights=special))
    where = placed(model, [optimizer])
    assert {name: where[name][1:] for name in LATENT} == {"2.weight": (0.001, 0.25)}
    assert {name for name in where if where[name][1:] == (0.01, 0.1)} == MATRICES
    set_learning_rates([optimizer], 0.5)
    assert {name: where[1] for name, where in placed(model, [optimizer]).items() if name in ("2.weight", "4.bias")} == {
        "2.weight": 0.0005,
        "4.bias": 0.005,
    }
    set_learning_rates([optimizer], 1.0)
    assert placed(model, [optimizer]) == where


def test_adam_on_binary_weights_and_sgd_on_the_rest():
    model = Small()
    special = {"optimizer": "adam", "learning_rate": 0.001, "optimizer_args": {"eps": "1e-7", "betas": [0.8, 0.99]}}
    entries = {"optimizer": "SGD", "optimizer_args": {"momentum": 0.5}, "weight_decay": 0.1}
    optimizers = create_optimizers(model, recipe(binary_weights=special, **entries))
    assert [type(o) for o in optimizers] == [torch.optim.SGD, torch.optim.Adam]
    assert {name for name, (i, *_) in placed(model, optimizers).items() if i == 1} == LATENT
    group = optimizers[1].param_groups[0]
    assert (group["eps"], group["betas"], group["initial_lr"]) == (1e-7, (0.8, 0.99), 0.001)
    assert optimizers[0].param_groups[0]["momentum"] == 0.5
    # arguments alone also make a second one; of a network without binary weights there is one
    only = recipe(optimizer_args={"eps": 1e-6}, binary_weights={"optimizer_args": {"betas": [0.5, 0.9]}})
    (_, second) = create_optimizers(model, only)
    assert (second.param_groups[0]["eps"], second.param_groups[0]["betas"]) == (1e-6, (0.5, 0.9))
    twin = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    assert len(create_optimizers(twin, recipe(binary_weights=special, **entries))) == 1


def test_first_of_two_steps_takes_latent_weights_for_ordinary_ones():
    model = Small()
    made = recipe(weight_decay=0.1, binary_weights={"optimizer": "bop", "learning_rate": 1e-4})
    first = create_optimizers(model, made, real_weights=True, learning_rate=0.5, weight_decay=0.2)
    assert len(first) == 1
    assert {name for name, w in placed(model, first).items() if w == (0, 0.5, 0.2)} == MATRICES | LATENT
    first = placed(model, create_optimizers(model, made, real_weights=True, weight_decay=0.0))
    assert all(w == (0, 0.01, 0.0) for w in first.values())


def test_frozen_parameters_and_those_the_network_names_are_spared():
    model = Small()
    model[0].weight.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    model.no_weight_decay = lambda: {"4.weight"}
    where = placed(model, create_optimizers(model, recipe(weight_decay=0.1)))
    assert not LATENT & set(where) and all(decay == 0 for _, _, decay in where.values())


def test_bop_brings_weights_where_they_have_a_gradient():
    model = Small()
    with torch.no_grad():
        model[2].weight[0] = 3.0
    special = {"optimizer": "bop", "learning_rate": 0.1, "optimizer_args": {"threshold": "1e-9"}}
    _, bop = create_optimizers(model, recipe(binary_weights=special))
    assert type(bop) is Bop and bop.param_groups[0]["threshold"] == 1e-9
    assert bop.param_groups[0]["lr"] == bop.param_groups[0]["initial_lr"] == 0.1
    model(torch.randn(4, 2, 6, 6)).square().mean().backward()
    assert model[2].weight.grad[0].abs().sum() > 0


@pytest.mark.parametrize(
    "entries",
    [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "optimizer_args": {"momentum": 0.9}},
        {"optimizer": "lamb", "weight_decay": 0.01},
        {"optimizer": "lookahead_adamw"},
        {"optimizer": "momentum", "binary_weights": {"optimizer": "bop", "learning_rate": 0.01}},
        {"optimizer": "sgd", "binary_weights": {"optimizer": "adam", "learning_rate": 0.01}},
    ],
    ids=lambda entries: entries["optimizer"] + entries.get("binary_weights", {}).get("optimizer", ""),
)
def test_states_round_trip_exactly(entries, tmp_path):
    made = recipe(**entries)
    straight = Small()
    optimizers = create_optimizers(straight, made)
    train(straight, optimizers, range(7))
    state.save(tmp_path / "s.safetensors", {"optimizers": [o.state_dict() for o in optimizers]})
    resumed = copy.deepcopy(straight)
    train(straight, optimizers, range(7, 14))
    again = create_optimizers(resumed, made)
    for optimizer, tree in zip(again, state.load(tmp_path / "s.safetensors")["optimizers"], strict=True):
        optimizer.load_state_dict(tree)
    train(resumed, again, range(7, 14))
    for (name, expected), measured in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(measured, expected), name
    fresh = create_optimizers(copy.deepcopy(straight), made)
    assert str(fresh[0].state_dict()) != str(again[0].state_dict()), "there was a state to restore"


def test_clipping_touches_latent_weights_only():
    model = Small()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    before = copy.deepcopy(model.state_dict())
    clip_latent_weights(model, 0.5)
    for name, value in model.state_dict().items():
        expected = before[name].clamp(-0.5, 0.5) if name in LATENT else before[name]
        assert torch.equal(value, expected), name
    assert (before["2.weight"].abs() > 0.5).any()


def test_binary_parameters_of_a_network_and_of_a_layer():
    model = timm.create_model("bireal_digits")
    names = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, BinaryConv2d)}
    found = binary_parameters(model)
    assert set(found) == names and all(found[name] is p for name, p in model.named_parameters() if name in names)
    layer = BinaryConv2d(1, 1, 1)
    assert binary_parameters(layer) == {"weight": layer.weight}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"optimizer": "adamm"}, "optimizer: unknown 'adamm'; did you mean 'adam"),
        ({"optimizer": "fast_adam"}, "optimizer: unknown 'fast_adam'"),
        ({"optimizer": "bop"}, "optimizer: bop trains binary weights only"),
        ({"optimizer": "adahessian"}, "optimizer: adahessian needs second derivatives"),
        ({"optimizer_args": {"momentm": 0.9}}, "optimizer_args: adam has no 'momentm'; known: betas"),
        ({"optimizer_args": {"beta": [0.9, 0.99]}}, "optimizer_args: adam has no 'beta'; did you mean 'betas'"),
        ({"optimizer_args": {"lr": 0.1}}, "optimizer_args: adam has no 'lr'"),
        ({"optimizer_args": {"betas": 0.9}}, "optimizer: adam cannot be made with {'betas': 0.9}"),
        ({"optimizer_args": {"eps": -1}}, "optimizer: adam cannot be made with {'eps': -1}"),
        ({"binary_weights": {"optimizer": "bob"}}, "binary_weights.optimizer: unknown 'bob'; did you mean 'bop'"),
        ({"binary_weights": {"optimizer": "sgd", "optimizer_args": {"tau": 1}}}, "binary_weights.optimizer_args: sgd"),
        ({"binary_weights": {"optimizer": "bop"}}, "binary_weights.learning_rate: bop needs one"),
        (
            {"binary_weights": {"optimizer": "bop", "learning_rate": 0.1, "weight_decay": 0.1}},
            "binary_weights.weight_decay: bop",
        ),
        ({"binary_weights": {"optimizer": "bop", "learning_rate": 3}}, "binary_weights: Bop: lr is an adaptivity rate"),
        (
            {"binary_weights": {"optimizer": "bop", "learning_rate": 0.1, "optimizer_args": {"gamma": 1}}},
            "binary_weights.optimizer_args: bop has no 'gamma'; known: threshold",
        ),
        (
            {"binary_weights": {"optimizer": "bop", "learning_rate": 0.1, "optimizer_args": {"threshold": "x"}}},
            "binary_weights: ",
        ),
    ],
)
def test_mistakes(entries, message):
    with pytest.raises(RecipeError, match=message) as error:
        create_optimizers(Small(), recipe(**entries))
    assert "\n" not in str(error.value)
