import math

import numpy as np
import pytest
import torch
from torch import nn

from leanconv.preprocess import Preprocessing
from leanconv.train import checkpoint, loop, state
from leanconv.train.data import DataError, Split, load_data
from leanconv.train.evaluate import evaluate
from leanconv.train.recipe import RecipeError, load_recipe, make_recipe

FILES = ("checkpoint", "best")


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
    assert load_recipe(out / "recipe.yaml").epochs == 2
    assert sorted(p.name for p in out.iterdir()) == [
        "best.safetensors",
        "checkpoint.safetensors",
        "log.jsonl",
        "recipe.yaml",
        "state.safetensors",
        "tensorboard",
    ]


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
    measured = evaluate(model, load_data("digits").test, rules)
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
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_best_and_last(tmp_path, monkeypatch):
    tops = iter((0.3, 0.5, 0.4))
    monkeypatch.setattr(loop, "evaluate", lambda *a, **k: {"loss": 1.0, "top1": next(tops), "top5": 0.9})
    result = loop.train(recipe(epochs=3, batch_size=512), tmp_path, progress=False)
    assert result.top1 == 0.4
    epochs = {name: checkpoint.read_info(tmp_path / f"{name}.safetensors")["training"]["epoch"] for name in FILES}
    assert epochs == {"checkpoint": 3, "best": 2}


def test_first_of_two_steps_is_marked_and_never_best(tmp_path, monkeypatch):
    tops = iter((0.9, 0.4, 0.5))
    seen = []

    def measure(model, *args, **kwargs):
        seen.append(model.layer1[0].conv1.binarize_weight.real)
        return {"loss": 1.0, "top1": next(tops), "top5": 0.9}

    monkeypatch.setattr(loop, "evaluate", measure)
    two = recipe(epochs=2, batch_size=512, warmup_epochs=0, real_weights_first={"epochs": 1, "learning_rate": 0.5})
    result = loop.train(two, tmp_path, progress=False)
    assert seen == [True, False, False]
    info = checkpoint.read_info(tmp_path / "best.safetensors")["training"]
    assert info["epoch"] == 3 and info["real_weights"] is False
    assert result.history[0]["learning_rate"] > 0.05 > result.history[1]["learning_rate"]


def test_average_of_weights_is_what_is_measured(tmp_path):
    result = loop.train(recipe(epochs=1, ema=0.5), tmp_path, progress=False)
    saved = state.load(tmp_path / "state.safetensors")
    assert torch.equal(result.model.fc.weight, saved["average"]["fc.weight"])
    assert not torch.equal(saved["average"]["fc.weight"], saved["model"]["fc.weight"])


def test_precision_and_memory_layout(tmp_path):
    result = loop.train(recipe(epochs=1, precision="bf16", channels_last=True), tmp_path, progress=False)
    assert result.top1 > 0.3 and result.model.fc.weight.dtype == torch.float32


def test_start_from_a_float_twin(tmp_path):
    twin = loop.train(recipe(model="resnet_digits", epochs=1), tmp_path / "float", progress=False)
    path = str(twin.checkpoint)
    run = loop.Run(recipe(start_from=path), tmp_path / "binary", loop.accelerator_for(recipe(), "cpu"), None)
    assert torch.equal(run.model.layer1[0].conv1.weight, twin.model.layer1[0].conv1.weight)
    with pytest.raises(checkpoint.CheckpointError, match="none of its tensors"):
        loop.train(recipe(model="vit_tiny_patch16_224", start_from=path), tmp_path / "no", progress=False)


def test_converted_network_is_rebuilt_from_its_checkpoint(tmp_path):
    how = {"to": "BinaryConv2d", "args": {"binarize_weight": "magnitude"}}
    result = loop.train(recipe(model="resnet_digits", epochs=1, convert=how), tmp_path, progress=False)
    model, info = checkpoint.load(result.checkpoint)
    assert info["convert"]["to"] == "BinaryConv2d"
    assert type(model.layer1[0].conv1).__name__ == "BinaryConv2d" and type(model.conv1).__name__ == "Conv2d"
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), result.model(x))


def test_teacher_changes_the_run(tmp_path):
    twin = loop.train(recipe(model="resnet_digits", epochs=1), tmp_path / "teacher", progress=False)
    taught = recipe(epochs=1, teacher={"checkpoint": str(twin.checkpoint), "weight": 0.9})
    one = loop.train(taught, tmp_path / "taught", progress=False)
    other = loop.train(recipe(epochs=1), tmp_path / "alone", progress=False)
    assert one.history[0]["train_loss"] != other.history[0]["train_loss"]


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
    measured = evaluate(Sum(), split, rules, batch_size=2)
    good, bad = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert measured == pytest.approx({"top1": 2 / 3, "top5": 1.0, "loss": (2 * good + bad) / 3})


def test_progress_lines_without_a_terminal(capsys, tmp_path):
    loop.train(recipe(epochs=1, batch_size=512), tmp_path)
    error = capsys.readouterr().err
    assert "bireal_digits epoch 1/1" in error and "pictures/s" in error and "top-1" in error
