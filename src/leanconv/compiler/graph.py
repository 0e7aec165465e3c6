"""What stands between torch's graph and a Program: maps and the operators that make them, one node each, not yet
fused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[Any, ...]  # batch first; ints, or torch SymInts where a size is free

HEADS = (
    "binary_conv",
    "binary_conv_transpose",
    "conv",
    "linear",
    "max_pool",
    "avg_pool",
    "global_avg_pool",
    "concat",
    "flatten",
    "gated_conv",
    "windowed_conv",
    "adaptive_avg_pool",
)


@dataclass(eq=False)
class Node:
    """One operator of the network that is being compiled, and the map that it yields.

    `kind` is "input", one of HEADS, "sign", "identity", or a step kind other than store. Per-channel `tensors` (scale,
    bias, slope) are float64 here and rounded once when the Program is written; `weight` has its final layout already.
    """

    kind: str
    inputs: list[Node]
    channels: int
    layer: str
    attrs: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    sources: list[str] = field(default_factory=list)  # names of torch's nodes that have this node's value
    origin: str = ""  # name of torch's node that this node was lowered from


@dataclass
class Map:
    """A map as torch's graph sees it: the node that makes it, and its shape outside (rank 4, 3 or 2)."""

    node: Node
    shape: Shape


@dataclass
class Stack:
    """Maps stacked along a new dimension, waiting for the mean over it."""

    maps: list[Map]
    dim: int


def engine_size(shape: Shape) -> tuple[Any, Any]:
    """Height and width inside the engine of a map of an outside shape."""
    sizes = (1, 1, *shape[2:])
    return sizes[-2], sizes[-1]


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are the same number, or the same expression of free sizes."""
    return str(a) == str(b)


def reachable(outputs: Iterable[Node]) -> list[Node]:
    """The nodes that the outputs need, every one after its inputs."""
    order: list[Node] = []
    seen: set[int] = set()
    stack = [(node, False) for node in reversed(list(outputs))]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((n, False) for n in reversed(node.inputs))
    return order
