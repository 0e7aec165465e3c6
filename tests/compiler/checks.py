"""Compile a model and compare the reference interpreter with PyTorch on other inputs than the example's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanconv.compiler import compile_verified
from leanconv.engine import reference
from leanconv.program import Program


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norm as after training, so that nothing is 0 or 1 by accident; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor, low, high in (
                (module.weight, -1.5, 1.5),
                (module.bias, -1.0, 1.0),
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.3, 3.0),
            ):
                if tensor is not None:
                    with torch.no_grad():
                        tensor.uniform_(low, high, generator=generator)
    return model.eval()


def check(model: nn.Module, *inputs: Tensor, tolerance: float = 2e-5, verify: bool = True) -> Program:
    """Compile on `inputs`, then compare every output with PyTorch on fresh numbers of the same shapes and another
    batch."""
    settle(model)
    program, _ = compile_verified(model, inputs if len(inputs) > 1 else inputs[0], verify=verify)
    compare(program, model, *(torch.randn(3, *x.shape[1:]) for x in inputs), tolerance=tolerance)
    return program


def compare(program: Program, model: nn.Module, *inputs: Tensor, tolerance: float = 2e-5) -> None:
    with torch.no_grad():
        expected = pytree.tree_leaves(model(*(x.clone() for x in inputs)))
    got = reference.run(program, [x.numpy() for x in inputs])
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=tolerance, atol=tolerance)


class Call(nn.Module):
    """A function as a module, with modules (`m0`, `m1`, ...) as its further arguments."""

    def __init__(self, function, *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor):
        return self.function(*inputs, *self.parts)


def kinds(program: Program) -> list[str]:
    return [op.kind for op in program.ops]


def steps(program: Program, index: int) -> list[str]:
    return [s.kind for s in program.ops[index].steps]
