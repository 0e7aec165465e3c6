"""ONNX with standard operators and a dynamic batch, so that any runtime can run a network of ours (in float
arithmetic).

The network is exported with its marker operators; these are then written out as plain ones with materialised weights:
signs as ``Where(x >= 0, 1, -1)``, so that sign(0) = +1, and a binary layer as a float convolution with weights of +-1,
followed by its scale and bias. The file is compared with PyTorch in onnxruntime (where installed) before it is
written.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from leanconv.compiler.errors import CompileError
from leanconv.compiler.export import as_arguments, evaluation, export_model
from leanconv.compiler.lower import named_outputs
from leanconv.program import write_atomic

TOLERANCE = 1e-4


@dataclass
class OnnxExport:
    """What was written, and what the comparison with PyTorch found (None without onnxruntime)."""

    size: int
    largest_difference: float | None
    flipped_signs: int | None


def export_onnx(model: nn.Module, example: Any, path: str | Path) -> OnnxExport:
    """Write `model` as ONNX: inputs named as in forward(), outputs as in a Program, batch free, other sizes as in the
    example.

    Args: `example` as for :func:`leanconv.compiler.compile`.
    Raises: CompileError where torch cannot export the network, or where onnxruntime disagrees for another reason than
        a sign whose input is within 1e-4 (of its root mean square) of 0. Nothing is written then.
    """
    args, kwargs = as_arguments(model, example)
    exported = export_model(model, args, kwargs, free=False)
    names = [n for n in exported.program.graph_signature.user_inputs if isinstance(n, str)]
    inputs = [*args, *kwargs.values()]
    count = len(exported.program.graph_signature.user_outputs)
    structure = pytree.tree_unflatten(list(range(count)), exported.program.call_spec.out_spec)
    outputs = [name or "output" for name, _ in sorted(named_outputs(structure), key=lambda pair: pair[1])]
    plain = _plain(exported.program.module(), with_signs=False)
    data = _to_onnx(plain, inputs, names, outputs)
    difference = flips = None
    if importlib.util.find_spec("onnxruntime") is not None:
        difference, flips = _compare(model, exported, inputs, args, names, outputs, data)
    write_atomic(path, data)
    return OnnxExport(len(data), difference, flips)


# --------------------------------------------------------------------------------------- markers to standard operators


def _plain(module: fx.GraphModule, with_signs: bool) -> fx.GraphModule:
    """`module` with every marker written out; with `with_signs` the input of every sign becomes a further output."""
    graph = module.graph
    before_signs = []
    for node in list(graph.nodes):
        name = str(node.target)
        if node.op != "call_function" or not name.startswith("leanconv."):
            if node.op == "call_module" and "guard" in name:  # torch.export's check of input shapes
                graph.erase_node(node)
            continue
        with graph.inserting_before(node):
            if name == "leanconv.sign.default":
                before_signs.append(node.args[0])
                replacement = _sign(graph, node.args[0])
            else:
                replacement = _binary(module, node, name.split(".")[1])
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
    output = next(n for n in graph.nodes if n.op == "output")
    leaves = [
        a for a in pytree.tree_leaves(output.args, is_leaf=lambda a: isinstance(a, fx.Node)) if isinstance(a, fx.Node)
    ]
    output.args = ((*leaves, *(before_signs if with_signs else ())),)
    graph.set_codegen(fx.CodeGen())  # plain positional inputs, a flat tuple of outputs
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(module, graph)  # without the exported module's checks of its keyword arguments


def _sign(graph: fx.Graph, x: Any) -> fx.Node:
    at_least_0 = graph.call_function(torch.ops.aten.ge.Scalar, (x, 0.0))
    return graph.call_function(torch.ops.aten.where.Scalar, (at_least_0, 1.0, -1.0))


def _binary(module: fx.GraphModule, node: fx.Node, kind: str) -> fx.Node:
    from leanconv.nn.binarize import sign, weight_scale

    graph, aten = module.graph, torch.ops.aten
    x, weight, bias, binarizer = node.args[:4]
    window: tuple[Any, ...] = node.args[4:]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        raise CompileError(
            f"layer {node.name}: the weights of a binary layer are computed; only stored ones can be written to ONNX"
        )
    latent = _attribute(module, str(weight.target)).detach()
    rank = latent.dim()
    transposed = kind == "binary_conv_transpose"
    groups = window[-1] if kind != "binary_linear" else 1
    scale = weight_scale(latent, str(binarizer), transposed=transposed, groups=groups)
    signs = _constant(module, f"{node.name}_signs", sign(latent))
    if kind == "binary_linear":
        total = graph.call_function(aten.linear.default, (x, signs))
    elif transposed:
        stride, padding, output_padding, dilation, _ = window
        function = aten.conv_transpose1d.default if rank == 3 else aten.conv_transpose2d.input
        total = graph.call_function(function, (x, signs, None, stride, padding, output_padding, groups, dilation))
    else:
        stride, padding, pad_value, dilation, _ = window
        n = rank - 2
        pads = [p for d in reversed(range(n)) for p in (padding[d], padding[n + d])]
        if any(pads):
            x = graph.call_function(aten.constant_pad_nd.default, (x, pads, float(pad_value)))
        function = aten.conv1d.default if rank == 3 else aten.conv2d.default
        total = graph.call_function(function, (x, signs, None, stride, [0] * n, dilation, groups))
    channels = (1, -1) + (1,) * (rank - 2)
    if scale is not None:
        factor = _constant(module, f"{node.name}_scale", scale.view(channels))
        total = graph.call_function(aten.mul.Tensor, (total, factor))
    if bias is not None:
        shift = graph.call_function(aten.view.default, (bias, list(channels)))
        total = graph.call_function(aten.add.Tensor, (total, shift))
    return total


def _attribute(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _constant(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    module.register_buffer(name, value.contiguous())
    return module.graph.get_attr(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx reports its progress; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _to_onnx(module: fx.GraphModule, inputs: list[Tensor], names: list[str], outputs: list[str]) -> bytes:
    batch = Dim("batch", min=1)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                module, tuple(inputs), dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
            )
            onnx = torch.onnx.export(
                program, dynamo=True, input_names=names, output_names=outputs, optimize=True, verbose=False
            )
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise CompileError(
            f"torch.onnx cannot export this network: {text}; see docs/compiler.md for operators that work"
        ) from error
    assert onnx is not None
    return bytes(onnx.model_proto.SerializeToString())


# ------------------------------------------------------------------------------------------------------ the comparison


def _run(data: bytes, names: list[str], inputs: list[Tensor]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {n: t.cpu().numpy() for n, t in zip(names, inputs, strict=True)}))


def _compare(
    model: nn.Module,
    exported: Any,
    inputs: list[Tensor],
    args: tuple[Any, ...],
    names: list[str],
    outputs: list[str],
    data: bytes,
) -> tuple[float, int]:
    """Largest output difference and number of flipped signs, on the example and a random batch of three. Raises
    CompileError."""
    generator = torch.Generator().manual_seed(0)
    noise = [
        torch.randn((3, *t.shape[1:]), generator=generator) * (t.std() if t.std() > 0 else 1) + t.mean() for t in inputs
    ]
    largest, flips = 0.0, 0
    for batch in (inputs, noise):
        with evaluation(model):
            given = dict(zip(exported.kwargs, batch[len(args) :], strict=True))
            expected = [
                t
                for t in pytree.tree_leaves(model(*(t.clone() for t in batch[: len(args)]), **given))
                if isinstance(t, Tensor)
            ]
        got = _run(data, names, batch)
        pairs = [(a, b.cpu().numpy()) for a, b in zip(got, expected, strict=True)]
        largest = max([largest, *(float(np.abs(a - b).max()) for a, b in pairs)])
        if not all(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * float(np.sqrt(np.mean(b**2)))) for a, b in pairs):
            flips += _explain(exported, batch, names, outputs)
    return largest, flips


def _explain(exported: Any, inputs: list[Tensor], names: list[str], outputs: list[str]) -> int:
    """The number of flipped signs, if the first map with any has them only next to the threshold. Raises CompileError
    otherwise."""
    module = _plain(exported.program.module(), with_signs=True)
    with torch.no_grad():
        ours = [t.cpu().numpy() for t in module(*(t.clone() for t in inputs))][len(outputs) :]
    data = _to_onnx(module, inputs, names, [*outputs, *(f"before_sign{k}" for k in range(len(ours)))])
    theirs = _run(data, names, inputs)[len(outputs) :]
    flips = [(a >= 0) != (b >= 0) for a, b in zip(ours, theirs, strict=True)]
    for flipped, before in zip(flips, ours, strict=True):
        if flipped.any():
            scale = float(np.sqrt(np.mean(before.astype(np.float64) ** 2)))
            if float(np.abs(before[flipped]).max()) <= TOLERANCE * scale:
                return int(sum(f.sum() for f in flips))
            break
    raise CompileError(
        "the ONNX file differs from PyTorch in onnxruntime by more than rounding; please report it with the model"
    )
