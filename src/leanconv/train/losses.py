"""What training makes small: cross entropy, and beside it the distance to a teacher's answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv import models  # noqa: F401  (registers our networks and prepares torchvision for timm)
from leanconv.preprocess import Preprocessing
from leanconv.train import checkpoint
from leanconv.train.recipe import Recipe, RecipeError
from leanconv.train.recipe import Teacher as TeacherEntry

import timm  # isort: skip

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Criterion:
    """The loss of a recipe.

    Cross entropy with its label smoothing (soft targets have theirs already); with a teacher
    ``(1 - weight) * cross entropy + weight * T^2 * KL(softmax(teacher / T) || softmax(network / T))``, the mean over
    pictures (knowledge distillation, Hinton et al., arXiv 1503.02531). The teacher sees the same pictures, in
    evaluation mode, without gradient, in the recipe's precision; the loss itself is computed in float32.

    Args: teacher: is frozen here; None where the recipe has none.
    """

    def __init__(self, recipe: Recipe, teacher: nn.Module | None) -> None:
        self.label_smoothing = recipe.label_smoothing
        self.entry = recipe.teacher
        self.precision = AUTOCAST.get(recipe.precision)
        self.teacher = teacher.eval().requires_grad_(False) if teacher is not None else None

    def __call__(self, x: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, float32 and without dimensions.

        Args:
            x: the pictures that gave `logits` [N, classes]. targets: int64 [N], or float [N, classes].
        """
        logits = logits.float()
        smoothing = 0.0 if targets.is_floating_point() else self.label_smoothing
        with torch.autocast(x.device.type, enabled=False):
            loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            if self.teacher is None or self.entry is None:
                return loss
            return (1 - self.entry.weight) * loss + self.entry.weight * distillation(
                logits, self._answer(x), self.entry.temperature
            )

    @torch.no_grad()
    def _answer(self, x: Tensor) -> Tensor:
        assert self.teacher is not None
        with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
            return self.teacher(x).float()


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(logits / T))``, the mean over pictures (arXiv 1503.02531).

    T^2 keeps its gradient beside that of a cross entropy when T changes. Shapes: [N, classes] both -> [].

    >>> distillation(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), temperature=3.0).item()
    0.0
    """
    ours = F.log_softmax(logits / temperature, dim=1)
    theirs = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class Renormalized(nn.Module):
    """A network fed with pictures that were normalized for another one: ``network((x * std + mean - own_mean) /
    own_std)``, with mean and std of `rules` for the pictures and those of `own` for the network.
    """

    scale: Tensor  # [1, C, 1, 1], or [1, 1, 1, 1] where the two differ in channels
    shift: Tensor

    def __init__(self, network: nn.Module, rules: Preprocessing, own: Preprocessing) -> None:
        super().__init__()
        self.network = network
        values = (rules.mean, rules.std, own.mean, own.std)
        mean, std, own_mean, own_std = (torch.tensor(v).view(1, -1, 1, 1) for v in values)
        if len(rules.mean) != len(own.mean):  # a network made for colour that was given grey pictures, or the reverse
            mean, std, own_mean, own_std = (v.mean(1, keepdim=True) for v in (mean, std, own_mean, own_std))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x * self.scale + self.shift)


def load_teacher(recipe: Recipe, classes: int, in_chans: int, rules: Preprocessing | None = None) -> nn.Module | None:
    """The recipe's teacher in evaluation mode, or None: from a checkpoint of leanconv's, or timm's with the weights
    that ship with it.

    Args:
        classes, in_chans: of the network that is to learn from it.
        rules: how the pictures are prepared that both see; a teacher trained with another mean and std gets them
            renormalized.
    Raises: RecipeError (no such network or weights, another number of classes, pictures that don't fit it),
        CheckpointError.
    """
    entry = recipe.teacher
    if entry is None:
        return None
    what = entry.checkpoint or entry.model
    teacher, own = _from_checkpoint(entry, classes, in_chans) if entry.checkpoint else _pretrained(entry, in_chans)
    size = next((known.input_size for known in (rules, own) if known is not None), None)
    height, width = size[1:] if size is not None else (32, 32)
    try:
        with torch.no_grad():
            answers = teacher.eval()(torch.zeros(1, in_chans, height, width)).shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RecipeError(
            f"teacher: {what} takes no pictures of {in_chans}x{height}x{width} ({_first_line(error)})"
        ) from None
    if answers != classes:
        raise RecipeError(
            f"teacher: {what} knows {answers} classes, the data has {classes}; take a network trained on it"
        )
    if rules is None or own is None or (own.mean, own.std) == (rules.mean, rules.std):
        return teacher
    return Renormalized(teacher, rules, own).eval()


def _from_checkpoint(entry: TeacherEntry, classes: int, in_chans: int) -> tuple[nn.Module, Preprocessing | None]:
    assert entry.checkpoint is not None
    network = None
    if entry.model is not None:
        network = _create(entry, pretrained=False, num_classes=classes, in_chans=in_chans)
    elif entry.model_args:
        raise RecipeError("teacher.model_args: without model the checkpoint says what its network is; leave them out")
    teacher, info = checkpoint.load(entry.checkpoint, network)
    return teacher, Preprocessing.from_dict(info["preprocessing"]) if info["preprocessing"] else None


def _pretrained(entry: TeacherEntry, in_chans: int) -> tuple[nn.Module, Preprocessing]:
    teacher = _create(entry, pretrained=True, in_chans=in_chans)
    config: Any = teacher.pretrained_cfg
    trained, made = config.get("num_classes"), getattr(teacher, "num_classes", None)
    if trained != made:  # timm then starts with random weights in the last layer
        raise RecipeError(f"teacher.model_args: the weights of {entry.model} know {trained} classes, not {made}")
    return teacher, Preprocessing.from_dict(config)


def _create(entry: TeacherEntry, **args: Any) -> nn.Module:
    assert entry.model is not None
    try:
        return timm.create_model(entry.model, **{**args, **entry.model_args})
    except Exception as error:  # an unknown name, a wrong argument, weights that cannot be had
        raise RecipeError(f"teacher.model: {entry.model!r} cannot be made ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
