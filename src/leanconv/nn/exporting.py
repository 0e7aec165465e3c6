"""Whether a layer is being exported, which decides between its marker operator and plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_lowering = ContextVar("lowering", default=False)


def is_exporting() -> bool:
    """True under ``torch.export`` (its default, non-strict mode), False under ``torch.compile`` and in eager mode.

    ``torch.compiler.is_exporting()`` alone does not do: inside ``torch.compile`` torch 2.11 answers True, and the
    markers have no gradient. A strict export traces by the same machinery as ``torch.compile`` and gets plain
    PyTorch, too.

    >>> is_exporting()
    False
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


@contextmanager
def lowering() -> Iterator[None]:
    """Exports inside are for the engine's compiler: real-valued layers of ours become marker operators, too."""
    token = _lowering.set(True)
    try:
        yield
    finally:
        _lowering.reset(token)


def is_lowering() -> bool:
    """True in an export for the engine's compiler; other exports get standard operators from real-valued layers.

    >>> is_lowering()
    False
    """
    return is_exporting() and _lowering.get()  # in this order: torch.compile cannot trace the second
