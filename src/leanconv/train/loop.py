"""The training loop: flat, on whole tensors, with everything random drawn from the recipe's seed."""

from __future__ import annotations

import difflib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv import models  # noqa: F401  (registers our networks and prepares torchvision for timm)
from leanconv.preprocess import Preprocessing
from leanconv.program import write_atomic
from leanconv.train import checkpoint
from leanconv.train.augment import augment
from leanconv.train.data import Data, DataError, Split, hold_out, load_data
from leanconv.train.progress import Progress
from leanconv.train.recipe import Recipe, RecipeError

import timm  # isort: skip


class TrainingError(ValueError):
    """A run that cannot go on; one line that says where it stopped and what to try."""


@dataclass
class Result:
    """What a run gives. `top1` is the last epoch's on `split`: "test", or "validation" where the recipe says so."""

    model: nn.Module
    top1: float
    split: str
    history: list[dict[str, float]]
    checkpoint: Path
    info: dict[str, Any]
    seconds: float
    reproduced: bool | None  # None: the recipe states no result for this data


def train(
    recipe: Recipe, out: str | Path, *, progress: bool = True, device: str | torch.device | None = None
) -> Result:
    """Train a network and write ``out/checkpoint.safetensors`` (after each epoch), ``history.json`` and
    ``recipe.yaml``.

    Every file is written under a temporary name and then renamed: an interrupted run leaves whole files only.

    Args:
        progress: show a progress bar (a line for each epoch where the output is no terminal).
        device: default is the GPU where there is one.
    Raises: RecipeError, DataError, TrainingError (loss no longer finite).
    """
    started = time.perf_counter()
    out = Path(out)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(recipe.seed)
    data, rules = _load(recipe)
    assert data.train is not None
    train_split, test_split, split_name = data.train, data.test, "test"
    if recipe.validation:
        train_split, test_split = hold_out(data.train, recipe.validation)
        split_name = "validation"
    train_split, test_split = train_split.to(device), test_split.to(device)
    in_chans = int(train_split.images.shape[3])

    model_args = {"num_classes": len(data.classes), "in_chans": in_chans} | recipe.model_args
    model = create_model(recipe.model, model_args).to(device)
    optimizer = create_optimizer(model, recipe)
    steps_per_epoch = len(train_split) // recipe.batch_size
    if steps_per_epoch == 0:
        raise RecipeError(f"batch_size: {recipe.batch_size} is more than the {len(train_split)} training pictures")
    total_steps = recipe.epochs * steps_per_epoch
    warmup_steps = recipe.warmup_epochs * steps_per_epoch
    order = torch.Generator().manual_seed(recipe.seed)
    chance = torch.Generator(device).manual_seed(recipe.seed)

    info: dict[str, Any] = {
        "name": recipe.model,
        "model_args": model_args,
        "preprocessing": asdict(rules),
        "classes": data.classes,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "recipe.yaml", recipe.to_yaml().encode())
    path = out / "checkpoint.safetensors"
    history: list[dict[str, float]] = []
    step = 0
    with Progress(recipe.model, recipe.epochs, steps_per_epoch, recipe.batch_size, enabled=progress) as bar:
        for epoch in range(1, recipe.epochs + 1):
            epoch_started = time.perf_counter()
            model.train()
            shuffled = torch.randperm(len(train_split), generator=order).to(device)
            loss_sum = torch.zeros((), device=device)
            correct = torch.zeros((), device=device)
            for batch in range(steps_per_epoch):
                chosen = shuffled[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
                x = train_split.images[chosen].permute(0, 3, 1, 2).float()  # B, C, H, W; 0..255
                x = normalize(augment(x, recipe.augment, chance), rules)
                y = train_split.labels[chosen]

                rate = recipe.learning_rate * rate_factor(step, total_steps, warmup_steps, recipe.schedule)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                logits = model(x)
                loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

                step += 1
                loss_sum += loss.detach()
                correct += (logits.detach().argmax(1) == y).sum()
                if device.type == "cpu" or batch % 10 == 9:  # reading a value back makes a GPU wait
                    _check_finite(float(loss_sum), epoch, batch + 1, recipe)
                    bar.step(batch + 1, float(loss_sum) / (batch + 1))
            _check_finite(float(loss_sum), epoch, steps_per_epoch, recipe)
            seconds = time.perf_counter() - epoch_started

            measured = evaluate(model, test_split, rules, device=device)
            seen = steps_per_epoch * recipe.batch_size
            row = {
                "epoch": epoch,
                "learning_rate": rate,
                "train_loss": float(loss_sum) / steps_per_epoch,
                "train_top1": float(correct) / seen,
                "loss": measured["loss"],
                "top1": measured["top1"],
                "seconds": seconds,
                "pictures_per_second": seen / seconds,
            }
            history.append(row)
            bar.epoch(row)
            training = {"recipe": recipe.model_dump(exclude_none=True), "split": split_name, **row}
            checkpoint.save(path, model, **info, training=training)
            write_atomic(out / "history.json", json.dumps(history, indent=1).encode())

    top1 = history[-1]["top1"]
    checked = recipe.expect is not None and split_name == "test"
    return Result(
        model=model.eval(),
        top1=top1,
        split=split_name,
        history=history,
        checkpoint=path,
        info=checkpoint.read_info(path),
        seconds=time.perf_counter() - started,
        reproduced=top1 >= recipe.expect.at_least if checked and recipe.expect is not None else None,
    )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    rules: Preprocessing,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """Cross entropy, top-1 and top-5 (fractions) of `model` on `split`, in evaluation mode: keys loss, top1, top5."""
    device = torch.device(device) if device is not None else next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss = top1 = top5 = 0.0
    for start in range(0, len(split), batch_size):
        x = split.images[start : start + batch_size].to(device).permute(0, 3, 1, 2).float()
        y = split.labels[start : start + batch_size].to(device)
        logits = model(normalize(x, rules))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        top1 += float((best[:, 0] == y).sum())
        top5 += float((best == y[:, None]).sum())
    model.train(was_training)
    return {"loss": loss / len(split), "top1": top1 / len(split), "top5": top5 / len(split)}


def normalize(x: Tensor, rules: Preprocessing) -> Tensor:
    """``(x / 255 - mean) / std`` for x [N, C, H, W] with grey levels 0..255."""
    mean = torch.tensor(rules.mean, device=x.device).view(1, -1, 1, 1)
    std = torch.tensor(rules.std, device=x.device).view(1, -1, 1, 1)
    return (x / 255 - mean) / std


def rate_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """What the learning rate is multiplied by: a linear rise over `warmup` steps, then a fall to 0 (or none)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def create_model(name: str, model_args: dict[str, Any]) -> nn.Module:
    """``timm.create_model`` with errors that say what to change. Raises RecipeError."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`leanconv list` names ours, timm.list_models() all"
        raise RecipeError(f"model: unknown network {name!r}; {hint}")
    try:
        return timm.create_model(name, **model_args)
    except (TypeError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RecipeError(f"model_args: {name} cannot be made with {model_args} ({line})") from None


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer of that name; weight decay for real-valued weights only. Raises RecipeError."""
    from timm.optim import create_optimizer_v2, list_optimizers

    if recipe.optimizer.lower() not in list_optimizers():
        near = difflib.get_close_matches(recipe.optimizer.lower(), list_optimizers(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"optimizer: unknown {recipe.optimizer!r}{hint}")
    latent = {id(m.weight) for m in model.modules() if hasattr(m, "binarize_weight")}
    parameters = [p for p in model.parameters() if p.requires_grad]
    real = [p for p in parameters if p.dim() > 1 and id(p) not in latent]
    rest = [p for p in parameters if p.dim() <= 1 or id(p) in latent]
    groups = [{"params": real, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return create_optimizer_v2([g for g in groups if g["params"]], opt=recipe.optimizer, lr=recipe.learning_rate)


def preprocessing_of(name: str, model_args: dict[str, Any] | None = None) -> Preprocessing:
    """How pictures are prepared for the network `name`, from timm's pretrained_cfg. Raises RecipeError."""
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        raise RecipeError(f"model: {name!r} does not say how its pictures are prepared")
    return Preprocessing.from_dict(cfg.to_dict())


def _load(recipe: Recipe) -> tuple[Data, Preprocessing]:
    """The data and how a picture of it enters the network."""
    if not timm.is_model(recipe.model):
        create_model(recipe.model, {})  # raises the error that names near ones
    rules = preprocessing_of(recipe.model)
    data = load_data(recipe.data, rules)
    if data.train is None:
        raise DataError(f"data {recipe.data!r} has no training pictures")
    if data.prepared:
        return data, rules
    height, width, channels = (int(n) for n in data.train.images.shape[1:])
    mean, std = rules.mean, rules.std
    if len(mean) != channels:  # a grey or RGBA data set in a network made for colour
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    rules = Preprocessing((channels, height, width), mean, std, rules.interpolation, 1.0, rules.crop_mode)
    return data, rules


def _check_finite(loss: float, epoch: int, batch: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch}, step {batch}: "
            f"lower learning_rate (now {recipe.learning_rate:g}) or lengthen warmup_epochs"
        )
