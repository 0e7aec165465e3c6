"""The last step of compiling: fused groups of operators written as a Program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanconv.compiler.errors import CompileError
from leanconv.compiler.fuse import Fusion, Group, Site
from leanconv.compiler.graph import Node
from leanconv.compiler.lower import Graph
from leanconv.program import Input, Op, Output, Program, Step, Value


@dataclass
class Fused:
    """A Program with its origin: which of torch's nodes hold each value, and the ones that went into each operator."""

    program: Program
    value_sources: dict[int, list[str]]
    op_sources: list[list[str]]
    op_origins: list[str]


class Emitter:
    """Writes the fused groups as a Program."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: list[Value] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.number: dict[int, int] = {}  # value number by node
        self.sources: dict[int, list[str]] = {}
        self.counted: set[str] = set()
        self.names: set[str] = set()

    def emit(self) -> Fused:
        inputs = [self._input(name, m) for name, m in self.graph.inputs]
        fusion = Fusion(self.graph)
        fusion.run()
        groups = fusion.ordered()
        ops = [self._op(group) for group in groups]
        outputs = [Output(name, self.number[id(m.node)], len(m.shape)) for name, m in self.graph.outputs]
        program = Program(inputs, outputs, self.values, ops, self.tensors)
        sources = [[s for site in g.sites for s in site.node.sources] for g in groups]
        return Fused(program, self.sources, sources, [g.head.origin if g.head else "" for g in groups])

    def _input(self, name: str, m: Any) -> Input:
        sizes = [s if isinstance(s, int) else None for s in (1, 1, *m.shape[2:])[-2:]]
        return Input(name, self._value(m.node, "real"), m.node.channels, sizes[0], sizes[1], len(m.shape))

    def _value(self, node: Node, kind: Any) -> int:
        self.values.append(Value(kind, node.channels))
        number = len(self.values) - 1
        self.number[id(node)] = number
        self.sources[number] = node.sources
        return number

    def _unique(self, name: str, taken: Any) -> str:
        candidate, k = name, 1
        while candidate in taken:
            k += 1
            candidate = f"{name}_{k}"
        return candidate

    def _tensor(self, op: Op, role: str, array: np.ndarray) -> str:
        name = self._unique(f"{op.name}.{role}", self.tensors)
        if array.dtype != np.uint8:
            array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise CompileError(
                    f"layer {op.name}: {role} is not finite in float32; train the network again or rescale it"
                )
        self.tensors[name] = np.ascontiguousarray(array)
        return name

    def _op(self, group: Group) -> Op:
        head = group.head
        if head is None:
            named = group.sites[1].node if len(group.sites) > 1 else group.sites[0].signs[0]
            assert group.operand is not None
            op = Op("elementwise", "", [self.number[id(group.operand)]])
        else:
            named = head
            op = Op(head.kind, "", [self.number[id(n)] for n in head.inputs], attrs=dict(head.attrs))
        op.name = self._unique(named.layer, self.names)
        self.names.add(op.name)
        if head is not None:
            op.tensors = {role: self._tensor(op, role, array) for role, array in head.tensors.items()}
            if head.kind in ("concat", "flatten"):
                op.output = self._value(head, "real")
        for k, site in enumerate(group.sites):
            op.steps.extend(self._site(op, group, site, first=k == 0))
        op.parameters_real = self._count(op, group)
        return op

    def _site(self, op: Op, group: Group, site: Site, first: bool) -> list[Step]:
        steps = []
        if not first:
            steps.extend(self._step(op, group.sites[group.sites.index(site) - 1].node, site.node))
        if site.stored and op.output is None and id(site.node) not in self.number:
            steps.append(Step("store", value=self._value(site.node, "real")))
        for sign in site.signs:
            source = sign.inputs[0]
            scale, bias = source.tensors.get("scale"), source.tensors.get("bias")
            step = Step("sign")
            if source is not site.node:  # an affine that only signs read
                step.scale = None if scale is None else self._tensor(op, "sign_scale", scale)
                step.bias = None if bias is None else self._tensor(op, "sign_bias", bias)
            step.value = self._value(sign, "bits")
            steps.append(step)
        return steps

    def _step(self, op: Op, x: Node, node: Node) -> list[Step]:
        if node.kind == "identity":
            return []
        if node.kind in ("add", "mul"):
            other = node.inputs[1] if node.inputs[0] is x else node.inputs[0]
            return [Step(node.kind, value=self.number[id(other)])]
        if node.kind == "affine":
            names = {role: self._tensor(op, role, array) for role, array in node.tensors.items()}
            return [Step("affine", scale=names.get("scale"), bias=names.get("bias"))]
        if node.kind == "prelu":
            return [Step("prelu", slope=self._tensor(op, "slope", node.tensors["slope"]))]
        return [Step(node.kind, min=node.attrs.get("min"), max=node.attrs.get("max"))]

    def _count(self, op: Op, group: Group) -> int:
        """Real-valued parameters of the group, each of the network's counted once."""
        nodes: list[Node] = []
        for k, site in enumerate(group.sites):
            if k or group.head is not None:
                nodes.append(site.node)
            nodes.extend(s.inputs[0] for s in site.signs if s.inputs[0] is not site.node)
        names = set().union(*(n.parameters for n in nodes)) - self.counted
        self.counted |= names
        return sum(self.graph.parameter_sizes[name] for name in names)


def fuse_graph(graph: Graph) -> Fused:
    """The Program of a lowered network."""
    return Emitter(graph).emit()
