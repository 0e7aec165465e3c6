"""From torch's exported graph to the compiler's own: one pass over the nodes, one handler an operator.

The handlers live in :mod:`.maps` (operators that make a new map or reshape one) and :mod:`.elementwise`;
docs/compiler.md lists them. Arithmetic on parameters alone is carried out by torch. Everything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from leanconv.compiler.errors import CompileError, layer_of, refuse
from leanconv.compiler.export import Exported
from leanconv.compiler.graph import Map, Node, Shape, Stack, engine_size, same
from leanconv.compiler.inplace import check_in_place

Handler = Callable[..., Any]
TABLE: dict[str, Handler] = {}
TABLE_WAY_OUT = "use one of the operators listed in docs/compiler.md, or keep this part outside the compiled model"
# Bookkeeping of torch.export without effect on values.
IGNORED = {
    "aten._assert_scalar.default",
    "aten._assert_tensor_metadata.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range_for_size.default",
    "aten.sym_constrain_range.default",
}


def lowers(*operators: str) -> Callable[[Handler], Handler]:
    """Register a handler for operators, by the names that `str(node.target)` gives."""

    def register(handler: Handler) -> Handler:
        TABLE.update(dict.fromkeys(operators, handler))
        return handler

    return register


@dataclass
class Const:
    """A tensor that is known when compiling, with the names of the parameters that went into it."""

    tensor: Tensor
    parameters: frozenset[str] = frozenset()

    def array(self) -> np.ndarray:
        return self.tensor.detach().to("cpu", torch.float64).contiguous().numpy()


@dataclass
class Graph:
    """A lowered network: inputs and outputs by name, before fusion."""

    inputs: list[tuple[str, Map]]
    outputs: list[tuple[str, Map]]
    parameter_sizes: dict[str, int] = field(default_factory=dict)


class Lowering:
    """The state of one pass; handlers get it as their first argument and the operator's arguments by name ("self" is
    `x`)."""

    def __init__(self, exported: Exported) -> None:
        self.exported = exported.program
        self.env: dict[fx.Node, Any] = {}
        self.at: fx.Node = next(iter(self.exported.graph.nodes))
        self.signs: dict[int, Node] = {}

    # ------------------------------------------------------------------------------------------------- for handlers

    def refuse(self, reason: str, way_out: str) -> NoReturn:
        raise refuse(self.at, reason, way_out)

    @property
    def shape(self) -> Shape:
        """Shape of the result of the operator at hand."""
        return tuple(self.at.meta["val"].shape)

    def node(self, kind: str, inputs: list[Node], channels: int, **fields: Any) -> Node:
        return Node(kind, inputs, int(channels), layer_of(self.at) or self.at.name, origin=self.at.name, **fields)

    def affine(self, x: Node, scale: Any = None, bias: Any = None, parameters: frozenset[str] = frozenset()) -> Node:
        """``x * scale + bias`` for each channel; x itself where that changes nothing."""
        tensors = {}
        for role, value, neutral in (("scale", scale, 1.0), ("bias", bias, 0.0)):
            if value is None:
                continue
            vector = np.broadcast_to(np.asarray(value, np.float64), (x.channels,))
            if np.any(vector != neutral) or parameters:
                tensors[role] = vector
        return self.node("affine", [x], x.channels, tensors=tensors, parameters=parameters) if tensors else x

    def result(self, node: Node) -> Map:
        return Map(node, self.shape)

    def real(self, value: Any, role: str = "input") -> Map:
        """`value` as a map of real numbers."""
        if isinstance(value, Map):
            if value.node.kind != "sign":
                return value
            self.refuse(
                f"its {role} is a map of signs, which only binary layers, max pooling, concatenation, flattening read",
                "feed it the value before the sign",
            )
        if isinstance(value, Stack):
            self.refuse("stacked maps can only be averaged over the new dimension", "use torch.stack([...], d).mean(d)")
        self.refuse(f"its {role} is not a map of the network ({type(value).__name__})", TABLE_WAY_OUT)

    def weight(self, value: Any, role: str = "weight") -> np.ndarray:
        """A constant float32 tensor."""
        if not isinstance(value, Const):
            self.refuse(f"its {role} is computed from the input", "only parameters and buffers can serve as weights")
        if value.tensor.dtype != torch.float32:
            self.refuse(f"its {role} is {value.tensor.dtype}, not float32", "call model.float() before compiling")
        array = value.tensor.detach().cpu().contiguous().numpy()
        if not np.isfinite(array).all():
            self.refuse(f"its {role} holds NaN or infinity", "train the network again; this checkpoint is broken")
        return array

    def sign(self, x: Node) -> Node:
        """The signs of x; the same node for the same x."""
        if id(x) not in self.signs:
            self.signs[id(x)] = self.node("sign", [x], x.channels)
        return self.signs[id(x)]

    # ---------------------------------------------------------------------------------------------------- the pass

    def run(self) -> Graph:
        from leanconv.compiler import elementwise, maps  # noqa: F401  (fill TABLE)

        signature, constants = self.exported.graph_signature, constants_of(self.exported)
        inputs: list[tuple[str, Map]] = []
        check_in_place(self.exported.graph)
        for node in self.exported.graph.nodes:
            self.at = node
            if node.op == "placeholder":
                if node.name in constants:
                    self.env[node] = constants[node.name]
                elif node.name in signature.user_inputs and isinstance(node.meta.get("val"), Tensor):
                    inputs.append((node.name, self._input(node)))
            elif node.op == "get_attr":
                value = getattr(self.exported.graph_module, str(node.target), None)
                self.env[node] = Const(value) if isinstance(value, Tensor) else value
            elif node.op == "call_function":
                self.env[node] = self._call(node)
            elif node.op == "output":
                sizes = {name: p.numel() for name, p in self.exported.named_parameters()}
                return Graph(inputs, self._outputs(node), sizes)
            else:
                self.refuse(f"a {node.op} node", TABLE_WAY_OUT)
        raise CompileError("torch.export gave a graph without output")

    def _input(self, node: fx.Node) -> Map:
        value = node.meta["val"]
        source = Node("input", [], int(value.shape[1]), node.name, sources=[node.name])
        self.env[node] = Map(source, tuple(value.shape))
        return self.env[node]

    def _call(self, node: fx.Node) -> Any:
        name, value = str(node.target), node.meta.get("val")
        if name in IGNORED or isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float)):
            return value
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            block = "an autocast region" if "autocast" in name else f"a wrapped block ({name})"
            self.refuse(f"{block} inside forward() hides a part of the network", "move it out of forward()")
        arguments = pytree.tree_map(
            self._value, (node.args, dict(node.kwargs)), is_leaf=lambda a: isinstance(a, fx.Node)
        )
        leaves = pytree.tree_leaves(arguments, is_leaf=lambda a: isinstance(a, (Map, Const, Stack)))
        if not any(isinstance(a, (Map, Stack)) for a in leaves):
            return self._fold(node, arguments, leaves)
        handler = TABLE.get(name)
        if handler is None:
            self.refuse("this operator is not among those that can be lowered", TABLE_WAY_OUT)
        result = handler(self, **_bind(node, *arguments))
        if isinstance(result, Map):
            self._check_shape(result)
            if node.name not in result.node.sources:
                result.node.sources.append(node.name)
        return result

    def _value(self, argument: Any) -> Any:
        return self.env.get(argument) if isinstance(argument, fx.Node) else argument

    def _fold(self, node: fx.Node, arguments: Any, leaves: list[Any]) -> Const:
        """An operator on constants alone, carried out by torch."""
        known = [a for a in leaves if isinstance(a, Const)]
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        symbolic = any(isinstance(a, torch.SymInt) for a in leaves)
        if random or symbolic or str(node.target).startswith("aten.empty"):
            reason = "its result is random" if random else "its result does not come from the input or from parameters"
            self.refuse(reason, TABLE_WAY_OUT)
        args, kwargs = pytree.tree_map(
            lambda a: a.tensor if isinstance(a, Const) else a, arguments, is_leaf=lambda a: isinstance(a, Const)
        )
        with torch.no_grad():
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        if not isinstance(result, Tensor):
            self.refuse("several results from an operator on parameters", TABLE_WAY_OUT)
        return Const(result, frozenset[str]().union(*(a.parameters for a in known)))

    def _check_shape(self, result: Map) -> None:
        batch = self.exported.graph_signature.user_inputs[0]
        first = next(n for n in self.exported.graph.nodes if n.name == batch)
        shape = result.shape
        if len(shape) not in (2, 3, 4) or not same(shape[0], first.meta["val"].shape[0]):
            self.refuse(
                f"its result has the shape {[str(s) for s in shape]}; maps are N,C,H,W, N,C,L or N,C",
                "keep the batch dimension in front",
            )

    def _outputs(self, node: fx.Node) -> list[tuple[str, Map]]:
        signature = self.exported.graph_signature
        changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        if changed:
            raise CompileError(
                f"forward() writes into {changed[0]}; compile a network that leaves its buffers and inputs alone"
            )
        values = [self.env.get(a) if isinstance(a, fx.Node) else a for a in node.args[0]]  # type: ignore[union-attr]
        structure = pytree.tree_unflatten(list(range(len(values))), self.exported.call_spec.out_spec)
        outputs = []
        for name, index in named_outputs(structure):
            value = values[index]
            if not isinstance(value, Map):
                raise CompileError(f"output {name or 'output'} does not depend on the input; return only computed maps")
            if value.node.kind == "sign":
                raise CompileError(
                    f"output {name or 'output'} is a map of signs; return the real value before the sign"
                )
            if value.node.kind == "input":  # an output is always a value that some operator writes
                value = Map(Node("identity", [value.node], value.node.channels, name or "output"), value.shape)
            outputs.append((name or "output", value))
        return outputs


def named_outputs(structure: Any, prefix: str = "") -> list[tuple[str, int]]:
    """Names of nested outputs: "output", keys of a dict, "output0", "output1" of a tuple, joined by dots."""
    if isinstance(structure, Mapping):
        items = [(f"{prefix}.{k}" if prefix else str(k), v) for k, v in structure.items()]
    elif isinstance(structure, (tuple, list)):
        items = [(f"{prefix}.{i}" if prefix else f"output{i}", v) for i, v in enumerate(structure)]
        if len(items) == 1 and not prefix:
            items = [("", structure[0])]
    elif isinstance(structure, int):
        return [(prefix, structure)]
    else:
        raise CompileError(f"forward() returns a {type(structure).__name__}; return tensors, tuples, lists or dicts")
    return [pair for name, value in items for pair in named_outputs(value, name)]


def constants_of(exported: torch.export.ExportedProgram) -> dict[str, Const]:
    """Parameters, buffers and constant tensors by the names of their placeholders."""
    signature, found = exported.graph_signature, {}
    for placeholder, name in signature.inputs_to_parameters.items():
        found[placeholder] = Const(exported.state_dict[name], frozenset([name]))
    for placeholder, name in signature.inputs_to_buffers.items():
        tensor = exported.state_dict[name] if name in exported.state_dict else exported.constants[name]
        found[placeholder] = Const(tensor)
    for placeholder, name in signature.inputs_to_lifted_tensor_constants.items():
        found[placeholder] = Const(exported.constants[name])
    return found


def _bind(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The operator's arguments by name, with the defaults that torch.export leaves out; `self` becomes `x`."""
    bound = {}
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if index < len(args):
            value = args[index]
        else:
            value = kwargs.get(argument.name, argument.default_value)
        bound["x" if argument.name == "self" else argument.name] = value
    return bound


def fixed_engine_size(lowering: Lowering, shape: Shape, what: str) -> tuple[int, int]:
    """Height and width of a map where they must be known; compile() then exports again with fixed sizes."""
    height, width = engine_size(shape)
    if not (isinstance(height, int) and isinstance(width, int)):
        lowering.refuse(f"{what} needs a known map size", "compile for one picture size")
    return height, width
