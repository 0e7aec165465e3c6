"""benchmarks/accuracy.py: what it records, and that it repeats nothing."""

from __future__ import annotations

import doctest

import pytest
import torch

from benchmarks import accuracy
from leanconv.results import read
from leanconv.train.recipe import RealWeightsFirst, load_recipe, make_recipe

QUICK = ["--set", "epochs=1", "--set", "batch_size=128", "--set", "warmup_epochs=0"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trained(monkeypatch):
    """The runs that were started, as (seed, epochs, resumed)."""
    calls = []

    def counted(recipe, out, **options):
        calls.append((recipe.seed, recipe.epochs, options["resume"]))
        return original(recipe, out, **options)

    original = accuracy.train
    monkeypatch.setattr(accuracy, "train", counted)
    return calls


def test_runs_are_recorded_and_not_repeated(tmp_path, trained):
    path, out = tmp_path / "study.csv", tmp_path / "runs"
    arguments = [str(path), "digits/bireal_digits", *QUICK, "--out", str(out)]
    assert accuracy.main([*arguments, "--seeds", "0"]) == 0
    assert accuracy.main([*arguments, "--seeds", "0", "1"]) == 0
    assert trained == [(0, 1, False), (1, 1, False)]
    rows = read(path)
    assert [(r.study, r.model, r.seed, r.epochs, r.split) for r in rows] == [
        ("study", "bireal_digits", seed, 1, "test") for seed in (0, 1)
    ]
    assert rows[0].arm == "1-bit batch_size=128 warmup_epochs=0"
    assert rows[0].ops == 131328 and rows[0].top1_percent > 30 and rows[0].machine
    assert sorted(p.name for p in (out / "digits").iterdir()) == ["bireal_digits-0", "bireal_digits-1"]

    def done(**changes):
        return accuracy.is_done(path, made.model_copy(update=changes), rows[0].arm)

    made = load_recipe(out / "digits" / "bireal_digits-0" / "recipe.yaml")
    assert done() and done(seed=1)
    assert not done(seed=2) and not done(epochs=2) and not done(validation=0.2)
    assert not done(real_weights_first=RealWeightsFirst(epochs=1))
    assert not accuracy.is_done(path, made, "1-bit") and not accuracy.is_done(tmp_path / "other.csv", made, rows[0].arm)


def test_a_finished_run_of_a_folder_is_recorded_without_training_it_again(tmp_path, trained, capsys):
    out = tmp_path / "runs"
    arguments = ["digits/bireal_digits", *QUICK, "--out", str(out), "--seeds", "0"]
    assert accuracy.main([str(tmp_path / "a.csv"), *arguments]) == 0
    state = out / "digits" / "bireal_digits-0" / "state.safetensors"
    before = state.read_bytes()
    assert accuracy.main([str(tmp_path / "b.csv"), *arguments]) == 0
    assert [resumed for *_, resumed in trained] == [False, True] and state.read_bytes() == before
    assert read(tmp_path / "a.csv")[0].top1_percent == read(tmp_path / "b.csv")[0].top1_percent

    assert accuracy.main([str(tmp_path / "c.csv"), *arguments, "--set", "learning_rate=0.1"]) == 1
    assert "the run was started with learning_rate 0.003" in capsys.readouterr().err
    assert not (tmp_path / "c.csv").exists()


def test_a_recipe_given_as_a_file_keeps_its_run_in_the_folder(tmp_path, trained):
    recipe = tmp_path / "mine" / "small.yaml"
    recipe.parent.mkdir()
    recipe.write_text("{model: resnet_digits, data: digits, epochs: 1, batch_size: 256, learning_rate: 0.003}")
    path, out = tmp_path / "study.csv", tmp_path / "runs"
    assert accuracy.main([str(path), str(recipe), "--seeds", "3", "--out", str(out)]) == 0
    assert [p.name for p in (out / "mine").iterdir()] == ["small-3"]
    assert [(r.arm, r.seed, r.ops) for r in read(path)] == [("float small", 3, 3034368)]


def test_what_an_arm_is_called():
    made = {"model": "bireal_digits", "data": "digits", "epochs": 1, "learning_rate": 0.1}
    recipe = make_recipe(made)
    assert accuracy.arm_of("bireal_digits", recipe, ["data=npz:x", "epochs=3", "workers=0"]) == "1-bit"
    assert accuracy.arm_of("bireal_digits_distilled", recipe, []) == "1-bit distilled"
    assert accuracy.arm_of("bireal_digits", recipe, ["augment.flip=true"]) == "1-bit augment.flip=true"
    assert accuracy.arm_of("resnet_digits", make_recipe(made | {"model": "resnet_digits"}), []) == "float"
    assert doctest.testmod(accuracy).failed == 0


def test_mistakes_are_one_line(tmp_path, capsys):
    path = tmp_path / "study.csv"
    for arguments, message in [
        (["digits/bireal_digit"], "no such recipe"),
        (["digits/bireal_digits", "--set", "seed=3"], "name the seeds with --seeds"),
        (["digits/bireal_digits", "--set", "epoch=3"], "did you mean 'epochs'"),
    ]:
        assert accuracy.main([str(path), *arguments]) == 1
        shown = capsys.readouterr().err.splitlines()
        assert len(shown) == 1 and message in shown[0], shown
    assert not path.exists()
