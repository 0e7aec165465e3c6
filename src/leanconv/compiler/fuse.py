"""Fusion: which elementwise nodes become steps of which operator, in what order the operators run, and the Program
itself.

A group is one operator of the Program: a head (convolution, pool, ... or `elementwise`, which only passes a value on)
and the chain of elementwise nodes that follow it. A node joins the group whose last node it continues, provided that
the other operand of an `add` or `mul` can be computed before that group; with two such groups it joins the later one.
A value that something outside the chain reads is stored at its place in the chain; signs hang on the place where their
input is the running value.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from leanconv.compiler.graph import HEADS, Node, reachable
from leanconv.compiler.lower import Graph


@dataclass(eq=False)
class Site:
    """A place in a group's chain: a node, the signs taken of it, and whether its value is stored."""

    node: Node
    signs: list[Node] = field(default_factory=list)
    stored: bool = False


@dataclass(eq=False)
class Group:
    head: Node | None  # None: `elementwise` on the value of `operand`
    operand: Node | None
    sites: list[Site]
    needs: set[int] = field(default_factory=set)  # groups that must run before
    number: int = 0

    @property
    def tail(self) -> Node:
        return self.sites[-1].node


def _or(vector: np.ndarray | None, default: np.ndarray) -> np.ndarray:
    return default if vector is None else vector


class Fusion:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        outputs = [m.node for _, m in graph.outputs]
        self.nodes = reachable([*(m.node for _, m in graph.inputs), *outputs])
        self.outputs = {id(n) for n in outputs}
        self.consumers: dict[int, list[Node]] = {}
        self._count()
        self._fold_affines()
        self.groups: list[Group] = []
        self.site: dict[int, tuple[Group, Site]] = {}  # by node; concat, flatten and inputs have none of their own
        self.taps: dict[int, Group] = {}  # the `elementwise` group that passes on a value without a chain

    def _count(self) -> None:
        consumers: dict[int, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for operand in node.inputs:
                consumers[id(operand)].append(node)
        self.consumers = consumers

    def _single(self, node: Node) -> bool:
        return len(self.consumers[id(node)]) == 1 and id(node) not in self.outputs

    def _fold_affines(self) -> None:
        """``(x * s1 + b1) * s2 + b2`` as one affine, in float64."""
        for node in self.nodes:
            inner = node.inputs[0] if node.inputs else node
            if node.kind != "affine" or inner.kind != "affine" or not self._single(inner):
                continue
            scale, bias = node.tensors.get("scale"), node.tensors.get("bias")
            inner_scale, inner_bias = inner.tensors.get("scale"), inner.tensors.get("bias")
            tensors: dict[str, np.ndarray] = {}
            one, zero = np.ones(node.channels), np.zeros(node.channels)
            if scale is not None or inner_scale is not None:
                tensors["scale"] = _or(scale, one) * _or(inner_scale, one)
            if bias is not None or inner_bias is not None:
                tensors["bias"] = _or(inner_bias, zero) * _or(scale, one) + _or(bias, zero)
            node.inputs, node.tensors = inner.inputs, tensors
            node.parameters = node.parameters | inner.parameters
        self.nodes = reachable([*(m.node for _, m in self.graph.inputs), *(m.node for _, m in self.graph.outputs)])
        self._count()

    # ------------------------------------------------------------------------------------------------------ grouping

    def run(self) -> None:
        absorbed = {
            id(n)
            for n in self.nodes
            if n.kind == "affine" and id(n) not in self.outputs and all(u.kind == "sign" for u in self.consumers[id(n)])
        }
        for node in self.nodes:
            if node.kind == "input" or id(node) in absorbed:
                continue
            if node.kind == "sign":
                source = node.inputs[0]
                group, site = self._place(source.inputs[0] if id(source) in absorbed else source)
                site.signs.append(node)
                self.site[id(node)] = (group, site)
            elif node.kind in HEADS:
                self._open(node)
            else:
                self._chain(node)
        for node in self.nodes:
            if id(node) in self.outputs:
                self._store(node)

    def _new(self, head: Node | None, operand: Node | None, sites: list[Site]) -> Group:
        group = Group(head, operand, sites, number=len(self.groups))
        self.groups.append(group)
        return group

    def _open(self, node: Node) -> None:
        """A new operator."""
        site = Site(node)
        group = self._new(node, None, [site])
        for operand in node.inputs:
            self._read(group, operand)
        if node.kind in ("concat", "flatten"):
            site.stored = True  # written as the operator's `output`
        self.site[id(node)] = (group, site)

    def _read(self, group: Group, operand: Node) -> None:
        """`group` reads the value of `operand` from memory."""
        self._store(operand)
        if id(operand) in self.site:
            group.needs.add(self.site[id(operand)][0].number)

    def _store(self, node: Node) -> None:
        if id(node) in self.site and node.kind != "sign":
            self.site[id(node)][1].stored = True

    def _has_site(self, node: Node) -> bool:
        """Whether `node` is a running value of some chain (inputs, concatenations and flattened maps only lie in
        memory)."""
        return id(node) in self.site and node.kind not in ("concat", "flatten")

    def _place(self, node: Node) -> tuple[Group, Site]:
        """Where `node` is a running value: its site in a chain, or the tap on its memory."""
        if self._has_site(node):
            return self.site[id(node)]
        if id(node) not in self.taps:
            self.taps[id(node)] = self._tap(node)
        group = self.taps[id(node)]
        return group, group.sites[0]

    def _tap(self, node: Node) -> Group:
        """A new `elementwise` operator on the value of `node`."""
        group = self._new(None, node, [Site(node)])
        self._read(group, node)
        return group

    def _open_group(self, x: Node) -> Group | None:
        """The group whose running value at the end is x."""
        group = self.site[id(x)][0] if self._has_site(x) else self.taps.get(id(x))
        return group if group is not None and group.tail is x else None

    def _chain(self, node: Node) -> None:
        """An elementwise node: a step of an open group, or the first step of a new `elementwise` operator."""
        operands = node.inputs
        pairs: list[tuple[Node, Node | None]] = [(operands[0], operands[1] if len(operands) > 1 else None)]
        if node.attrs.get("same_size"):
            pairs.append((operands[1], operands[0]))
        choices: list[tuple[Group, Node | None]] = []
        for x, other in pairs:
            group = self._open_group(x)
            if group is None or other is x:
                continue
            if other is not None and id(other) in self.site and self._reaches(self.site[id(other)][0], group):
                continue
            choices.append((group, other))
        if choices:
            group, other = max(choices, key=lambda choice: choice[0].number)
        else:
            x, other = pairs[0]
            group = self._tap(x) if self._has_site(x) or id(x) in self.taps else self._place(x)[0]
        if other is not None:
            self._read(group, other)
        site = Site(node)
        group.sites.append(site)
        self.site[id(node)] = (group, site)

    def _reaches(self, later: Group, earlier: Group) -> bool:
        """Whether `later` needs `earlier`, directly or through others."""
        stack, seen = [later.number], set()
        while stack:
            number = stack.pop()
            if number == earlier.number:
                return True
            if number not in seen:
                seen.add(number)
                stack.extend(self.groups[number].needs)
        return False

    def ordered(self) -> list[Group]:
        """The groups, each after those that it needs, otherwise in the network's order."""
        done: set[int] = set()
        order: list[Group] = []

        def visit(group: Group) -> None:
            stack = [group.number]
            while stack:
                waiting = sorted((n for n in self.groups[stack[-1]].needs if n not in done), reverse=True)
                if waiting:
                    stack.extend(waiting)
                    continue
                number = stack.pop()
                if number not in done:
                    done.add(number)
                    order.append(self.groups[number])

        for group in self.groups:
            visit(group)
        return order
