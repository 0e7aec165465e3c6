import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from leanconv.preprocess import Preprocessing
from leanconv.train import checkpoint, loop
from leanconv.train.data import DataError, Split, load_data
from leanconv.train.recipe import RecipeError, load_recipe, make_recipe


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(**entries):
    quick = {"model": "bireal_digits", "data": "digits", "epochs": 2, "learning_rate": 0.003, "warmup_epochs": 1}
    return make_recipe(quick | entries)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    return out, loop.train(recipe(augment={"shift": 0.5}, expect={"top1": 0.9, "at_least": 0.3}), out, progress=False)


def test_two_epochs_learn_the_digits(two_epochs):
    out, result = two_epochs
    assert result.top1 > 0.5 and result.split == "test" and result.reproduced is True
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.history[1]["train_loss"] < result.history[0]["train_loss"]
    assert json.loads((out / "history.json").read_text()) == result.history
    assert load_recipe(out / "recipe.yaml").epochs == 2
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint.safetensors", "history.json", "recipe.yaml"]


def test_checkpoint_gives_the_same_network(two_epochs):
    _, result = two_epochs
    model, info = checkpoint.load(result.checkpoint)
    assert not model.training
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(x), result.model(x))
    assert info["model"] == "bireal_digits" and info["model_args"] == {"num_classes": 10, "in_chans": 1}
    assert info["classes"] == [str(i) for i in range(10)]
    assert info["training"]["top1"] == result.top1 and info["training"]["recipe"]["seed"] == 0
    rules = Preprocessing.from_dict(info["preprocessing"])
    assert rules.input_size == (1, 8, 8) and rules.crop_pct == 1.0
    measured = loop.evaluate(model, load_data("digits").test, rules)
    assert measured["top1"] == result.top1 and measured["top5"] >= measured["top1"]


def test_same_seed_same_weights(tmp_path):
    runs = [
        loop.train(recipe(epochs=1, seed=seed, batch_size=256), tmp_path / str(i), progress=False)
        for i, seed in enumerate((1, 1, 2))
    ]
    first, second, third = (r.model.state_dict()["fc.weight"] for r in runs)
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_held_out_pictures_replace_the_test_set(tmp_path):
    result = loop.train(recipe(epochs=1, validation=0.2, expect={"top1": 1, "at_least": 1}), tmp_path, progress=False)
    assert result.split == "validation" and result.reproduced is None
    assert result.info["training"]["split"] == "validation"


def test_nan_loss_stops_with_one_line(tmp_path):
    with pytest.raises(loop.TrainingError, match="lower learning_rate") as error:
        loop.train(recipe(learning_rate=1e38, optimizer="sgd", warmup_epochs=0), tmp_path, progress=False)
    assert "epoch 1" in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_interruption_leaves_whole_files(tmp_path, monkeypatch):
    calls = iter(range(100))

    def interrupted(*args, **kwargs):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return {"loss": 1.0, "top1": 0.5, "top5": 0.5}

    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe(epochs=3, batch_size=512), tmp_path, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "history.json", "recipe.yaml"]
    assert checkpoint.read_info(tmp_path / "checkpoint.safetensors")["training"]["epoch"] == 1
    assert len(json.loads((tmp_path / "history.json").read_text())) == 1


def test_grey_pictures_in_a_network_made_for_colour(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (8, 12, 10), dtype=np.uint8), np.arange(8) % 3
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    result = loop.train(
        recipe(model="resnet20_cifar", data=f"npz:{tmp_path}/data.npz", epochs=1, batch_size=4), tmp_path / "out"
    )
    rules = result.info["preprocessing"]
    assert rules["input_size"] == [1, 12, 10] and len(rules["mean"]) == 1
    assert result.info["model_args"] == {"num_classes": 3, "in_chans": 1}


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"model": "bireal_digit"}, RecipeError, "unknown network 'bireal_digit'; did you mean 'bireal_digits'"),
        ({"optimizer": "adamm"}, RecipeError, "optimizer: unknown 'adamm'; did you mean 'adam"),
        ({"model_args": {"widht": 3}}, RecipeError, "model_args: bireal_digits cannot be made"),
        ({"batch_size": 5000}, RecipeError, "batch_size: 5000 is more than the 1347 training pictures"),
        ({"data": "digts"}, DataError, "unknown data 'digts'"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, entries, error, message):
    with pytest.raises(error, match=message):
        loop.train(recipe(**entries), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_rate_factor():
    cosine = [loop.rate_factor(s, 12, 2, "cosine") for s in range(13)]
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert cosine[7] == pytest.approx(0.5) and cosine[12] == pytest.approx(0.0)
    assert loop.rate_factor(5, 10, 0, "linear") == 0.5 and loop.rate_factor(9, 10, 0, "constant") == 1.0


def test_weight_decay_spares_binary_weights_and_vectors():
    import timm

    model = timm.create_model("bireal_digits")
    optimizer = loop.create_optimizer(model, recipe(weight_decay=0.1, optimizer="adamw"))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names == {"conv1.weight", "layer2.0.downsample.1.weight", "layer3.0.downsample.1.weight", "fc.weight"}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_evaluate_by_hand():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            total = x.flatten(1).sum(1) * self.scale
            return torch.stack([total, -total], 1)

    images = torch.tensor([255, 255, 0], dtype=torch.uint8).view(3, 1, 1, 1)
    split = Split(images, torch.tensor([0, 1, 1]))
    rules = Preprocessing((1, 1, 1), (0.5,), (0.5,))
    measured = loop.evaluate(Sum(), split, rules, batch_size=2)
    good, bad = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert measured == pytest.approx({"top1": 2 / 3, "top5": 1.0, "loss": (2 * good + bad) / 3})


def test_progress_lines_without_a_terminal(capsys, tmp_path):
    loop.train(recipe(epochs=1, batch_size=512), tmp_path)
    error = capsys.readouterr().err
    assert "bireal_digits epoch 1/1" in error and "pictures/s" in error and "top-1" in error
