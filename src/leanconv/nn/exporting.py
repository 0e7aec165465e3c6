"""Whether a layer is being exported, which decides between its marker operator and plain PyTorch."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """True under ``torch.export`` (its default, non-strict mode), False under ``torch.compile`` and in eager mode.

    ``torch.compiler.is_exporting()`` alone does not do: inside ``torch.compile`` torch 2.11 answers True, and the
    markers have no gradient. A strict export traces by the same machinery as ``torch.compile`` and gets plain
    PyTorch, too.

    >>> is_exporting()
    False
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
