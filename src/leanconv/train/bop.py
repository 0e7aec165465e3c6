"""Bop, an optimizer that flips binary weights instead of moving latent ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Bop(torch.optim.Optimizer):
    """Bop (Helwegen et al., "Latent weights do not exist", arXiv 1906.02107): flips a weight when a running mean of
    its gradient has pushed against it for long enough.

    ``m = (1 - lr) m + lr g``; then ``w = -w`` where ``|m| > threshold`` and ``sign(m) == sign(w)``.

    The paper's weights are +-1. Ours are latent: only the sign of a stored value is trained, its magnitude stays what
    it was, so that the scale of a layer with ``binarize_weight="magnitude"`` stays what it was, too. A stored 0 counts
    as +1, as everywhere, and becomes the smallest negative number when it flips. A layer passes no gradient to latent
    weights beyond its `clip`, so bring them within it first (:func:`leanconv.train.optimizers.create_optimizers`
    does).

    Args:
        lr: the adaptivity rate, gamma in the paper; named so that a schedule of learning rates decays it. For CIFAR-10
            the paper takes 1e-4 (cited from memory).
        threshold: tau in the paper, in units of the gradient; 1e-8 there (cited from memory).
    Raises: ValueError.

    >>> w = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
    >>> w.grad = torch.ones(2)
    >>> Bop([w], lr=0.1).step()
    >>> w.tolist()
    [-0.5, -0.5]
    """

    def __init__(self, params: Any, lr: float = 1e-4, threshold: float = 1e-8) -> None:
        if not 0 <= lr <= 1:
            raise ValueError(f"Bop: lr is an adaptivity rate, from 0 to 1, got {lr}")
        if not threshold >= 0:
            raise ValueError(f"Bop: threshold must be 0 or more, got {threshold}")
        super().__init__(params, {"lr": lr, "threshold": threshold})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the means and flip. Returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    if not state:
                        state["mean"] = torch.zeros_like(weight)
                    state["mean"].mul_(1 - group["lr"]).add_(weight.grad, alpha=group["lr"])
                    _flip(weight, state["mean"], group["threshold"])
        return loss


def _flip(weight: Tensor, mean: Tensor, threshold: float) -> None:
    against = torch.where(weight >= 0, mean, -mean)  # how strongly the gradient pushes towards the other sign
    flipped = torch.where(weight == 0, -torch.finfo(weight.dtype).tiny, -weight)
    weight.copy_(torch.where(against > threshold, flipped, weight))
