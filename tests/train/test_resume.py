"""Runs that are killed, interrupted, starved or shared: nothing is lost, and the result is the same."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from leanconv.train import log, loop, state
from leanconv.train.recipe import make_recipe

LEANCONV = str(Path(sys.executable).parent / "leanconv")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
QUICK = {
    "model": "bireal_digits",
    "data": "digits",
    "epochs": 2,
    "batch_size": 128,
    "learning_rate": 0.003,
    "log_steps": 1,
}
# something of everything that has a memory or draws at random
RICH = QUICK | {
    "model_args": {"drop_rate": 0.2},
    "augment": {"shift": 0.5, "mixup": 0.2},
    "ema": 0.9,
    "real_weights_first": {"epochs": 1},
    "binary_weights": {"clip": 1.0, "learning_rate": 0.001},
    "clip_gradient": 1.0,
    "warmup_epochs": 0.5,
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe_file(folder, entries):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


def start(recipe, out, *options, launcher=(LEANCONV,), **more):
    command = [*launcher, "train", str(recipe), "--out", str(out), *options]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def finish(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


def steps_saved(out):
    seen = out.with_suffix(".seen")  # a copy: the run replaces the file, which is opened twice to be read
    try:
        seen.write_bytes((out / "state.safetensors").read_bytes())
        position = state.load(seen)["position"]
    except (OSError, state.StateError):
        return -1
    return position["epoch"] * 10 + position["step"]  # 1347 // 128 = 10 steps an epoch


def wait_until(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def identical(one, other):
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_killed_runs_continue_bit_for_bit(tmp_path):
    recipe = recipe_file(tmp_path, RICH | {"save_minutes": 1e-9})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(recipe, whole))
    for step, options in ((3, ()), (14, ("--resume",))):
        process = start(recipe, killed, *options)
        wait_until(lambda step=step: steps_saved(killed) >= step, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert steps_saved(killed) < 30
    finish(start(recipe, killed, "--resume"))
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert identical(whole / name, killed / name)
    rows = [
        [{k: v for k, v in row.items() if "second" not in k} for row in log.read(o / "log.jsonl")]
        for o in (whole, killed)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 33


def test_taking_up_a_state_of_any_step_in_one_process(tmp_path):
    """Every step of the run, without the cost of a process for each."""
    recipe = make_recipe(RICH | {"save_minutes": 1e-9})
    states = {}
    kept = state.save

    def keep(path, tree):
        kept(path, tree)
        states[len(states)] = Path(path).read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "save", keep)
        whole = loop.train(recipe, tmp_path / "whole", progress=False)
    assert len(states) == 31
    for number in (0, 9, 10, 17, 29, 30):
        out = tmp_path / str(number)
        out.mkdir()
        (out / "state.safetensors").write_bytes(states[number])
        if number in (29, 30):
            for name in ("checkpoint.safetensors", "log.jsonl"):
                (out / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        result = loop.train(recipe, out, progress=False, resume=True)
        assert identical(result.checkpoint, whole.checkpoint), number


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    recipe = recipe_file(tmp_path, RICH)
    out = tmp_path / "run"
    process = start(recipe, out)
    wait_until(lambda: len(log.read(out / "log.jsonl")) >= 4, process)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, code=130)
    assert err.splitlines()[-1].startswith("stopped in epoch 1 after step") and "--resume" in err
    assert 4 <= steps_saved(out) < 10
    finish(start(recipe, out, "--resume"))
    whole = tmp_path / "whole"
    finish(start(recipe, whole))
    assert identical(out / "checkpoint.safetensors", whole / "checkpoint.safetensors")


def test_two_processes_do_what_one_accumulates(tmp_path):
    entries = QUICK | {"optimizer": "sgd", "learning_rate": 0.05, "augment": {"shift": 0.5, "flip": True}}
    recipe = recipe_file(tmp_path, entries)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "leanconv")
    out, _ = finish(start(recipe, tmp_path / "two", launcher=torchrun))
    assert out.count("top-1") == 1  # one process speaks for both
    finish(start(recipe, tmp_path / "one", "--set", "accumulate=2"))
    two, one = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("two", "one"))
    trained = [key for key in one if "running" not in key and "num_batches" not in key]
    assert len(trained) > 20
    for key in trained:  # 20 steps
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-7)
    rows = [log.read(tmp_path / name / "log.jsonl") for name in ("two", "one")]
    for a, b in zip(*rows, strict=True):
        if a["kind"] == "epoch":
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
            assert a["train_top1"] == pytest.approx(b["train_top1"], rel=1e-4)


def test_a_run_in_the_way_is_not_overwritten(tmp_path):
    first = loop.train(make_recipe(QUICK | {"epochs": 1}), tmp_path, progress=False)
    before = first.checkpoint.read_bytes()
    with pytest.raises(loop.TrainingError, match="holds a run already: --resume"):
        loop.train(make_recipe(QUICK), tmp_path, progress=False)
    with pytest.raises(loop.TrainingError, match=r"started with learning_rate 0\.003, the recipe now says 0.1"):
        loop.train(make_recipe(QUICK | {"epochs": 1, "learning_rate": 0.1}), tmp_path, progress=False, resume=True)
    assert first.checkpoint.read_bytes() == before
    again = loop.train(make_recipe(QUICK | {"epochs": 1}), tmp_path, progress=False, resume=True)
    assert again.top1 == first.top1 and again.history == first.history
    assert first.checkpoint.read_bytes() == before
    other = loop.train(make_recipe(QUICK | {"epochs": 1, "seed": 1}), tmp_path, progress=False, overwrite=True)
    assert other.checkpoint.read_bytes() != before and len(other.history) == 1


def test_nothing_to_resume(tmp_path):
    with pytest.raises(state.StateError, match="no run to resume; leave out --resume"):
        loop.train(make_recipe(QUICK), tmp_path / "none", progress=False, resume=True)
    assert not (tmp_path / "none").exists()


def test_full_disk(tmp_path):
    """No file may grow beyond a limit from the second epoch on: the last whole files stay."""
    recipe = recipe_file(tmp_path, QUICK | {"epochs": 3})
    out = tmp_path / "run"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    finish(start(recipe, out, "--set", "epochs=1"))
    kept = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    saved = state.load(out / "state.safetensors")
    saved["recipe"]["epochs"] = 3
    state.save(out / "state.safetensors", saved)
    _, err = finish(start(recipe, out, "--resume", preexec_fn=limit), code=1)
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and "File too large" in last and "Traceback" not in err
    assert (out / "checkpoint.safetensors").read_bytes() == kept["checkpoint.safetensors"]
    assert not [path for path in out.iterdir() if "tmp" in path.name]
    finish(start(recipe, out, "--resume"))
    assert [row["epoch"] for row in log.read(out / "log.jsonl") if row["kind"] == "epoch"] == [1, 2, 3]


def test_nan_keeps_the_last_good_files(tmp_path):
    good = make_recipe(QUICK | {"epochs": 2, "optimizer": "sgd"})
    calls = iter(range(100))
    real = loop.Run.step

    def step(self, parts):
        if next(calls) == 15:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        return real(self, parts)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(loop.TrainingError, match="epoch 2, step 6") as error:
        patch.setattr(loop.Run, "step", step)
        loop.train(good, tmp_path, progress=False)
    assert "state.safetensors" in str(error.value)
    for name in ("checkpoint.safetensors", "state.safetensors"):
        tensors = load_file(tmp_path / name)
        assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    assert loop.train(good, tmp_path, progress=False, resume=True).history[-1]["epoch"] == 2


def test_log_is_json_lines(tmp_path):
    result = loop.train(make_recipe(QUICK | {"epochs": 1}), tmp_path, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, 11), 10]
    assert rows[-1] == result.history[0] and 0 < rows[-1]["flip_ratio"] < 1
    assert list((tmp_path / "tensorboard").iterdir())
