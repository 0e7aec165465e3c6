import math
import re

import pytest
import torch
from torch import nn

from leanconv.preprocess import Preprocessing
from leanconv.train import checkpoint
from leanconv.train.losses import Criterion, distillation, load_teacher
from leanconv.train.recipe import RecipeError, make_recipe

import timm  # isort: skip

RULES = Preprocessing((1, 8, 8), (0.25,), (0.5,))


def recipe(**entries):
    return make_recipe({"model": "bireal_digits", "data": "digits", "epochs": 1, "learning_rate": 0.1} | entries)


def softmax(row):
    powers = [math.exp(v) for v in row]
    return [p / sum(powers) for p in powers]


def cross_entropy(logits, targets):
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    return sum(-t * math.log(p) for row, target in rows for p, t in zip(softmax(row), target, strict=True)) / len(
        logits
    )


def divergence(logits, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(logits.tolist(), teacher.tolist(), strict=True):
        p = softmax([v / temperature for v in theirs])
        q = softmax([v / temperature for v in ours])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(logits)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_by_hand(smoothing):
    logits, labels = drawn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    criterion = Criterion(recipe(label_smoothing=smoothing), None)
    soft = nn.functional.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
    x = torch.zeros(5, 1, 8, 8)
    assert criterion(x, logits, labels).item() == pytest.approx(cross_entropy(logits, soft), rel=1e-5)
    assert criterion(x, logits, soft).item() == pytest.approx(cross_entropy(logits, soft), rel=1e-5), (
        "not smoothed twice"
    )


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 1.0), (0.9, 4.0), (1.0, 2.0)])
def test_with_a_teacher_by_hand(weight, temperature):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Dropout(0.5))
    entry = {"model": "resnet_digits", "weight": weight, "temperature": temperature}
    criterion = Criterion(recipe(teacher=entry), teacher.train())
    x, logits, labels = drawn(4, 1, 8, 8), drawn(4, 3, seed=1).requires_grad_(), torch.tensor([0, 1, 2, 1])
    answers = teacher[1](x.flatten(1))
    expected = (1 - weight) * cross_entropy(logits, nn.functional.one_hot(labels, 3))
    expected += weight * divergence(logits, answers, temperature)
    loss = criterion(x, logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert logits.grad.abs().sum() > 0 and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_distillation_pulls_towards_the_teacher():
    logits, teacher = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1)
    for _ in range(200):
        loss = distillation(logits, teacher, 2.0)
        logits.data -= torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(logits.softmax(1), teacher.softmax(1), atol=0.02, rtol=0)


def test_in_half_precision_the_loss_is_float32():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    seen = []
    teacher[1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    entries = {"teacher": {"model": "resnet_digits", "temperature": 2.0}}
    x, labels = drawn(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])
    logits = drawn(4, 3, seed=1)
    full = Criterion(recipe(**entries), teacher)(x, logits, labels)
    half = Criterion(recipe(precision="bf16", **entries), teacher)
    outside = half(x, logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        inside = half(x, logits.bfloat16().float(), labels)
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert outside.dtype == inside.dtype == torch.float32
    torch.testing.assert_close(outside, full, atol=0.02, rtol=0)
    torch.testing.assert_close(inside, full, atol=0.05, rtol=0)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a float network, and the network."""
    torch.manual_seed(0)
    model = timm.create_model("resnet_digits", num_classes=10, in_chans=1).eval()
    path = tmp_path / "teacher.safetensors"
    rules = {"input_size": [1, 8, 8], "mean": [0.25], "std": [0.5]}
    args = {"num_classes": 10, "in_chans": 1}
    checkpoint.save(path, model, name="resnet_digits", model_args=args, preprocessing=rules)
    return path, model


def test_no_teacher():
    assert load_teacher(recipe(), 10, 1) is None


@pytest.mark.parametrize("named", [False, True])
def test_teacher_from_a_checkpoint(saved, named):
    path, model = saved
    entry = {"checkpoint": str(path)} | ({"model": "resnet_digits"} if named else {})
    teacher = load_teacher(recipe(teacher=entry), 10, 1, RULES)
    x = drawn(3, 1, 8, 8)
    assert not teacher.training and torch.equal(teacher(x), model(x))


def test_teacher_that_was_trained_with_another_normalization(saved):
    path, model = saved
    rules = Preprocessing((1, 8, 8), (0.5,), (0.2,))
    teacher = load_teacher(recipe(teacher={"checkpoint": str(path)}), 10, 1, rules)
    pictures = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(teacher((pictures - 0.5) / 0.2), model((pictures - 0.25) / 0.5), atol=1e-5, rtol=1e-5)
    assert not teacher.training


def test_teacher_with_the_weights_that_ship_with_it(saved):
    path, model = saved
    shipped = {"pretrained_cfg_overlay": {"file": str(path)}}  # as if timm knew this file for the network
    teacher = load_teacher(recipe(teacher={"model": "resnet_digits", "model_args": shipped}), 10, 1)
    x = drawn(2, 1, 8, 8)
    assert torch.equal(teacher(x), model(x))
    with pytest.raises(RecipeError, match="the weights of resnet_digits know 10 classes, not 7"):
        load_teacher(recipe(teacher={"model": "resnet_digits", "model_args": {**shipped, "num_classes": 7}}), 7, 1)
    missing = {"pretrained_cfg_overlay": {"file": f"{path}x"}}
    with pytest.raises(RecipeError, match=r"teacher.model: 'resnet_digits' cannot be made \(FileNotFoundError"):
        load_teacher(recipe(teacher={"model": "resnet_digits", "model_args": missing}), 10, 1)


def test_mistakes(saved):
    path, _ = saved
    with pytest.raises(RecipeError, match="knows 10 classes, the data has 7"):
        load_teacher(recipe(teacher={"checkpoint": str(path)}), 7, 1)
    with pytest.raises(RecipeError, match=re.escape("takes no pictures of 3x8x8")):
        load_teacher(recipe(teacher={"checkpoint": str(path)}), 10, 3)
    with pytest.raises(RecipeError, match=r"teacher.model: 'resnet_digit' cannot be made"):
        load_teacher(recipe(teacher={"model": "resnet_digit"}), 10, 1)
    with pytest.raises(RecipeError, match=r"teacher.model_args: without model"):
        load_teacher(recipe(teacher={"checkpoint": str(path), "model_args": {"drop_rate": 0.1}}), 10, 1)
    with pytest.raises(checkpoint.CheckpointError, match="no such file"):
        load_teacher(recipe(teacher={"checkpoint": f"{path}x"}), 10, 1)
