"""The training loop, in phases, epochs and steps; everything random is drawn from the recipe's seed and the place."""

from __future__ import annotations

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from leanconv.nn import real_weights
from leanconv.program import write_atomic
from leanconv.train import checkpoint, state
from leanconv.train.batches import Share
from leanconv.train.chance import seed_at
from leanconv.train.data import Data, hold_out
from leanconv.train.evaluate import evaluate, normalize
from leanconv.train.flips import FlipRatio
from leanconv.train.log import Log, Row
from leanconv.train.losses import Criterion, load_teacher
from leanconv.train.mixing import Mixing
from leanconv.train.optimizers import clip_latent_weights, create_optimizers, set_learning_rates
from leanconv.train.progress import Progress
from leanconv.train.recipe import Recipe
from leanconv.train.schedule import Schedule
from leanconv.train.setup import create_model, read_data
from leanconv.train.stop import Stopped, StopSignal
from leanconv.train.streams import training_batches

from timm.utils import ModelEmaV3, distribute_bn  # isort: skip


class TrainingError(ValueError):
    """A run that cannot go on; one line that says where it stopped and what to try."""


@dataclass
class Result:
    """What a run gives. `top1` is the last epoch's on `split`: "test", or "validation" where the recipe says so."""

    model: nn.Module
    top1: float
    split: str
    history: list[Row]  # one row an epoch
    checkpoint: Path  # of the last epoch; best.safetensors beside it is that of the best
    info: dict[str, Any]
    seconds: float  # of training and evaluating, interruptions left out
    reproduced: bool | None  # None: the recipe states no result for this data


@dataclass
class Position:
    """Where a run is: `step` steps of `epoch` (both from 0) are done, and what they added up to."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: float = 0.0
    seen: int = 0
    best: float = -1.0
    seconds: float = 0.0


# Entries that may differ from those that a run was started with when it is resumed.
FREE_ENTRIES = ("workers", "log_steps", "save_minutes", "expect", "published", "accumulate")


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    progress: bool = True,
    device: str | torch.device | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Result:
    """Train a network in the folder `out`; under ``torchrun`` or ``accelerate launch``, with all of its processes.

    Writes ``checkpoint.safetensors`` (last epoch) and ``best.safetensors``, ``state.safetensors`` (what resuming
    needs: after each epoch, every `save_minutes`, and when asked to stop), ``log.jsonl``, ``tensorboard/`` and
    ``recipe.yaml``. Each file is replaced as a whole, so that none is ever half-written.

    A resumed run continues bit for bit on the same CPU with the same number of threads: every random draw is a
    function of the seed and its place. With as many parts (processes x `accumulate`) a step is the same however many
    processes compute it, up to the order of float sums; batch norm sees one part at a time.

    Args:
        progress: show a progress bar (a line for each epoch where the output is no terminal).
        device: default is the GPU where there is one.
        resume: go on where the run in `out` stopped; a finished one just gives its result.
        overwrite: start again even where `out` holds a run.
    Raises: RecipeError, DataError, TrainingError (the loss is no longer finite, or a run is in the way), StateError,
        Stopped (SIGINT or SIGTERM; the state is saved).
    """
    out = Path(out)
    accelerator = accelerator_for(recipe, device)
    saved = state.load(out / "state.safetensors") if resume else None
    if saved is None and not overwrite and (out / "state.safetensors").exists():
        raise TrainingError(
            f"{out} holds a run already: --resume goes on with it, --out names another folder, --overwrite replaces it"
        )
    run = Run(recipe, out, accelerator, saved)
    with Progress(
        recipe.model, run.epochs, run.batches.steps, recipe.batch_size, enabled=progress and run.writes
    ) as bar:
        run.go(bar)
    return run.result()


class Run:
    """One run: what it is made of, and what happens to it epoch by epoch."""

    def __init__(self, recipe: Recipe, out: Path, accelerator: Accelerator, saved: dict[str, Any] | None) -> None:
        self.recipe, self.out, self.accelerator = recipe, out, accelerator
        self.device = accelerator.device
        self.writes = accelerator.is_main_process
        if saved is not None:
            _check_same(recipe, saved, out)
        with accelerator.local_main_process_first():  # what reading leaves on disk is made once
            data, rules = read_data(recipe)
        self.rules = rules
        self.train_split, self.test_split, self.split_name = _splits(data, recipe)
        channels = rules.input_size[0]
        self.model_args = {"num_classes": len(data.classes), "in_chans": channels} | recipe.model_args
        self.batches = training_batches(
            self.train_split,
            rules,
            recipe,
            Share(accelerator.process_index, accelerator.num_processes, recipe.accumulate),
            self.device,
        )
        torch.manual_seed(seed_at(recipe.seed, "weights"))
        self.model = create_model(recipe, self.model_args)
        if recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.info: dict[str, Any] = {
            "name": recipe.model,
            "model_args": self.model_args,
            "convert": recipe.convert.model_dump(mode="json") if recipe.convert else None,
            "preprocessing": asdict(rules),
            "classes": data.classes,
        }
        self.mixing = Mixing(recipe.augment, self.model_args["num_classes"], recipe.label_smoothing)
        teacher = load_teacher(recipe, self.model_args["num_classes"], channels, rules)
        self.criterion = Criterion(recipe, teacher.to(self.device) if teacher is not None else None)
        self.measured = copy.deepcopy(self.model).to(self.device)  # what is evaluated and written: never compiled
        self.average = ModelEmaV3(self.model, decay=recipe.ema, device=self.device) if recipe.ema else None
        self.flips = FlipRatio()
        self.at = Position()
        self.first_epochs = recipe.real_weights_first.epochs if recipe.real_weights_first else 0
        self.epochs = self.first_epochs + recipe.epochs
        if saved is not None:
            self._restore(saved)
        self.trained = accelerator.prepare_model(self.model)
        if recipe.compile:
            self.model.compile()
        self._begin_phase(saved)
        self.started = time.perf_counter() - self.at.seconds
        out.mkdir(parents=True, exist_ok=True)
        self.last_saved = time.monotonic()
        if saved is None and self.writes:
            for name in ("checkpoint.safetensors", "best.safetensors", "state.safetensors", "log.jsonl"):
                (out / name).unlink(missing_ok=True)
            write_atomic(out / "recipe.yaml", recipe.to_yaml().encode())

    # ------------------------------------------------------------------------------------------------- epochs, steps

    def go(self, bar: Progress) -> None:
        with Log(self.out, self._steps_done, writes=self.writes) as log, StopSignal() as stop:
            self.history = log.epochs()
            bar.resume(self.at.epoch, self.at.step, self.history[-1]["top1"] if self.history else None)
            if self._steps_done == 0:
                self.flips.update(self.model)
                self._save()  # a run that is killed in its first epoch can be resumed, and a full disk shows at once
            while self.at.epoch < self.epochs:
                self._epoch(log, bar, stop)
                self.history = log.epochs()
                if self.at.epoch == self.first_epochs and self.first_epochs and self.at.epoch < self.epochs:
                    self._begin_phase(None)
                self._save()
                self._stop_if_asked(stop)

    def _epoch(self, log: Log, bar: Progress, stop: StopSignal) -> None:
        """The rest of an epoch, its evaluation and its files."""
        at, recipe = self.at, self.recipe
        begun, begun_at = time.perf_counter(), at.seen
        loss_sum = torch.tensor(at.loss, dtype=torch.float64)
        correct = torch.tensor(at.correct, dtype=torch.float64)
        waits = self.device.type != "cpu"  # reading a value back makes a GPU wait: not at each step there
        if waits:
            loss_sum, correct = loss_sum.to(self.device), correct.to(self.device)
        self.trained.train()
        for parts in self.batches.epoch(at.epoch, at.step):
            loss, hits = self.step(parts)
            loss_sum += loss
            correct += hits
            at.step += 1
            at.seen += recipe.batch_size
            last = at.step == self.batches.steps
            logs = at.step % recipe.log_steps == 0
            if not waits or logs or last or at.step % 10 == 0:
                at.loss, at.correct = float(loss_sum), float(correct)
                self._check_finite()
                bar.step(at.step, at.loss / at.step, at.correct / self._own(at.seen))
            if logs:
                log.write(self._row("step", learning_rate=self.rate, train_loss=at.loss / at.step))
            if not last:
                self._stop_if_asked(stop)
                if time.monotonic() - self.last_saved > 60 * recipe.save_minutes:
                    at.loss, at.correct = float(loss_sum), float(correct)
                    self._check_finite()
                    self._save()
        seconds = time.perf_counter() - begun
        train_loss, train_top1 = self._over_processes(at.loss / at.step, at.correct / self._own(at.seen))
        self._refresh_measured()
        measured = evaluate(self.measured, self.test_split, self.rules, device=self.device)
        flips = self.flips.update(self.model)
        row = self._row(
            "epoch",
            learning_rate=self.rate,
            train_loss=train_loss,
            train_top1=train_top1,
            **measured,
            **({"flip_ratio": flips["all"]} if "all" in flips else {}),
            seconds=seconds,
            pictures_per_second=(at.seen - begun_at) / seconds,
        )
        ends_first = at.epoch + 1 == self.first_epochs  # what real weights reached is no measure for binary ones
        self.at = Position(epoch=at.epoch + 1, best=-1.0 if ends_first else max(at.best, measured["top1"]))
        if self.writes:
            training = {
                "recipe": recipe.model_dump(mode="json", exclude_none=True),
                "split": self.split_name,
                "real_weights": at.epoch < self.first_epochs,
                **{key: value for key, value in row.items() if key != "kind"},
            }
            names = ["checkpoint"] if measured["top1"] <= at.best else ["checkpoint", "best"]
            for name in names:
                checkpoint.save(self.out / f"{name}.safetensors", self.measured, **self.info, training=training)
        log.write(row)
        bar.epoch(row)

    def step(self, parts: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the optimizers: the mean loss of this process's parts, and how many pictures were right."""
        recipe, at, accelerator = self.recipe, self.at, self.accelerator
        set_learning_rates(self.optimizers, self.schedule.factor(self._step_in_phase))
        self.rate = self.optimizers[0].param_groups[0]["lr"]
        first = accelerator.process_index * recipe.accumulate
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        for i, (x, y) in enumerate(parts):
            place = (at.epoch, at.step, first + i)
            x = normalize(x, self.rules)
            x, targets = self.mixing(x, y, seed_at(recipe.seed, "mix", *place))
            if recipe.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            torch.manual_seed(seed_at(recipe.seed, "model", *place))  # dropout, drop-path
            more = i + 1 < len(parts)
            with accelerator.no_sync(self.trained) if more else nullcontext():
                logits = self.trained(x)
                loss = self.criterion(x, logits, targets) / len(parts)
                accelerator.backward(loss)
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(1) == y).sum()
        if recipe.clip_gradient is not None:
            accelerator.clip_grad_norm_(self.trained.parameters(), recipe.clip_gradient)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if recipe.binary_weights.clip is not None and not self._in_first_phase:
            clip_latent_weights(self.model, recipe.binary_weights.clip)
        if self.average is not None:
            self.average.update(self.model)
        return loss_sum, correct

    # ------------------------------------------------------------------------------------------------- phases, places

    @property
    def _in_first_phase(self) -> bool:
        return self.at.epoch < self.first_epochs

    @property
    def _step_in_phase(self) -> int:
        begun = 0 if self._in_first_phase else self.first_epochs
        return (self.at.epoch - begun) * self.batches.steps + self.at.step

    @property
    def _steps_done(self) -> int:
        return self.at.epoch * self.batches.steps + self.at.step

    def _begin_phase(self, saved: dict[str, Any] | None) -> None:
        """Optimizers and schedule of the phase that the run is in, fresh or as they were saved."""
        recipe, first = self.recipe, self._in_first_phase
        for network in (self.model, self.measured, *([self.average.module] if self.average else [])):
            real_weights(network, first)
        epochs = self.first_epochs if first else recipe.epochs
        self.schedule = Schedule(recipe, epochs, self.batches.steps)
        special: dict[str, Any] = {"real_weights": True} if first else {}
        if first and recipe.real_weights_first is not None:
            chosen = {
                "learning_rate": recipe.real_weights_first.learning_rate,
                "weight_decay": recipe.real_weights_first.weight_decay,
            }
            special |= {key: value for key, value in chosen.items() if value is not None}
        optimizers = create_optimizers(self.model, recipe, **special)
        if saved is not None:
            for optimizer, tree in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(tree)
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.optimizers = [self.accelerator.prepare_optimizer(optimizer) for optimizer in optimizers]

    # ---------------------------------------------------------------------------------------------- saving, stopping

    def _save(self) -> None:
        """Replace the state on disk by the present one."""
        self.last_saved = time.monotonic()
        if not self.writes:
            return
        self.at.seconds = time.perf_counter() - self.started
        scaler = self.accelerator.scaler
        state.save(
            self.out / "state.safetensors",
            {
                "model": self.model.state_dict(),
                "average": self.average.module.state_dict() if self.average is not None else None,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "scaler": scaler.state_dict() if scaler is not None else None,
                "flips": self.flips.state_dict(),
                "position": asdict(self.at),
                "recipe": self.recipe.model_dump(mode="json"),
                "pictures": len(self.train_split),
                "steps": self.batches.steps,
            },
        )

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["pictures"] != len(self.train_split):
            raise TrainingError(
                f"{self.out}: the run was started with {saved['pictures']} training pictures, "
                f"now {self.recipe.data} has {len(self.train_split)}"
            )
        self.model.load_state_dict(saved["model"])
        if self.average is not None:
            self.average.module.load_state_dict(saved["average"])
        self.flips.load_state_dict(saved["flips"])
        self.at = Position(**saved["position"])

    def _stop_if_asked(self, stop: StopSignal) -> None:
        """Save and leave where any process was asked to."""
        requested = stop.requested
        if self.accelerator.num_processes > 1:
            requested = bool(self._over_processes(float(requested))[0] > 0)
        if requested and self.at.epoch < self.epochs:
            self._check_finite()
            self._save()
            raise Stopped(
                f"stopped in epoch {self.at.epoch + 1} after step {self.at.step}; "
                f"{self.out}/state.safetensors is saved, --resume goes on"
            )

    def _own(self, pictures: int) -> int:
        """How many of a number of pictures this process computed."""
        return pictures // self.accelerator.num_processes

    def _over_processes(self, *values: float) -> list[float]:
        """The means of values over the processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        reduced = self.accelerator.reduce(torch.tensor(values, device=self.device), reduction="mean")
        return [float(value) for value in reduced]

    def _check_finite(self) -> None:
        if not math.isfinite(self.at.loss):
            kept = (
                f"; the state before it is in {self.out}/state.safetensors"
                if (self.out / "state.safetensors").exists()
                else ""
            )
            raise TrainingError(
                f"the loss became {self.at.loss} in epoch {self.at.epoch + 1}, step {self.at.step}: "
                f"lower learning_rate (now {self.recipe.learning_rate:g}) or lengthen warmup_epochs{kept}"
            )

    # ---------------------------------------------------------------------------------------------------- results

    def _refresh_measured(self) -> None:
        source = self.average.module if self.average is not None else self.model
        if self.accelerator.num_processes > 1:  # each process has batch norm statistics of its own: take their means
            distribute_bn(source, self.accelerator.num_processes, reduce=True)
        self.measured.load_state_dict(source.state_dict())

    def _row(self, kind: str, **values: float) -> Row:
        return {"kind": kind, "epoch": self.at.epoch + 1, "step": self._steps_done, **values}

    def result(self) -> Result:
        recipe, path = self.recipe, self.out / "checkpoint.safetensors"
        self._refresh_measured()
        top1 = self.history[-1]["top1"]
        checked = recipe.expect is not None and self.split_name == "test"
        return Result(
            model=self.measured.eval(),
            top1=top1,
            split=self.split_name,
            history=self.history,
            checkpoint=path,
            info=checkpoint.read_info(path),
            seconds=time.perf_counter() - self.started,
            reproduced=top1 >= recipe.expect.at_least if checked and recipe.expect is not None else None,
        )


def accelerator_for(recipe: Recipe, device: str | torch.device | None) -> Accelerator:
    """accelerate's view of devices and processes, with the recipe's precision."""
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this process may have differed
    precision = {"fp32": "no"}.get(recipe.precision, recipe.precision)
    on_cpu = device is not None and torch.device(device).type == "cpu"
    return Accelerator(mixed_precision=precision, cpu=on_cpu or not torch.cuda.is_available())


def _splits(data: Data, recipe: Recipe) -> tuple[Any, Any, str]:
    assert data.train is not None
    if not recipe.validation:
        return data.train, data.test, "test"
    kept, held = hold_out(data.train, recipe.validation)
    return kept, held, "validation"


def _check_same(recipe: Recipe, saved: dict[str, Any], out: Path) -> None:
    """Raises TrainingError where the recipe isn't the one that the saved run was started with."""
    now, then = recipe.model_dump(mode="json"), saved["recipe"]
    for key in now:
        if key not in FREE_ENTRIES and now[key] != then.get(key):
            raise TrainingError(
                f"{out}: the run was started with {key} {then.get(key)!r}, the recipe now says {now[key]!r}; "
                "resume with the same recipe, or start another run with --out"
            )
