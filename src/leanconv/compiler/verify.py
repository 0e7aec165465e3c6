"""Does a Program compute what the model computes? Checked operator by operator before a file is written.

1. The exported graph must give what the model itself gives.
2. **Each operator alone**, on the inputs that it has in PyTorch (so that no difference can travel from layer to layer),
   interpreted by :mod:`leanconv.engine.reference`: sums of a binary layer equal PyTorch's exactly; real values, those
   before a sign too, agree within ``1e-4 * (scale + |value|)``; a sign that comes out differently is accepted only if
   PyTorch's value before the sign is within ``1e-4 * scale`` of the threshold. `scale` is the largest root mean square
   among PyTorch's values that the operator passes through (its sum, after batch norm, after the shortcut, ...):
   rounding errors are relative to these.
3. **The native engine**, where it is built, in the same way on its own values: a binary layer with its steps must give
   the
   reference's bits; real sums agree within the tolerance above.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from leanconv.compiler.compare import TOLERANCE, compare_real, fail, written
from leanconv.compiler.emit import Fused
from leanconv.compiler.errors import CompileError
from leanconv.compiler.export import Exported, evaluation
from leanconv.compiler.lower import constants_of
from leanconv.compiler.native import native_values
from leanconv.compiler.quantize import Quantization
from leanconv.engine import reference
from leanconv.program import Op


@dataclass
class Verification:
    """What a verification found. Flipped signs are those that differ from PyTorch by rounding."""

    operators: int
    signs: int  # compared, over all maps
    flipped: int  # operator by operator, on PyTorch's own inputs
    worst_flip: float  # largest distance of a flipped sign's input from the threshold, relative to `scale`
    flipped_end_to_end: int  # after the whole network, where flips may cause further ones
    largest_difference: float  # of an output, end to end
    largest_output: float
    engine: str  # what ran end to end: "native" or "reference"
    quantization: Quantization | None = None  # of the real-valued layers, after all of that

    def __str__(self) -> str:
        return (
            f"verified: {self.operators} operators, integer sums exact, {self.flipped} of {self.signs} signs "
            f"flipped by rounding (farthest {self.worst_flip:.1e} from the threshold), largest output difference "
            f"{self.largest_difference:.1e} of {self.largest_output:.1e} ({self.engine} engine, end to end)"
            + (f"\n{self.quantization}" if self.quantization is not None else "")
        )


def verify_compiled(model: nn.Module, exported: Exported, fused: Fused) -> Verification:
    """Compare a compiled network with its model, as described above. Raises CompileError naming the first layer that
    differs."""
    inputs = [_pictures(t) for t in (*exported.args, *exported.kwargs.values())]
    torch_values = recorded(model, exported, fused, inputs)
    check = _TorchCheck(exported, fused, torch_values)
    for index in range(len(fused.program.ops)):
        check.operator(index)

    arrays = [t.cpu().numpy() for t in inputs]
    if importlib.util.find_spec("leanconv._core") is not None:
        engine, values = "native", native_values(fused.program, arrays)
    else:
        engine, values = "reference", reference.run_values(fused.program, arrays)
    flipped = sum(
        int((values[v] != torch_values.map(s)).sum())
        for v, s in _sourced(fused, torch_values)
        if fused.program.values[v].type == "bits"
    )
    outputs = [(values[o.value], torch_values.outputs[i]) for i, o in enumerate(fused.program.outputs)]
    return Verification(
        operators=len(fused.program.ops),
        signs=check.signs,
        flipped=check.flipped,
        worst_flip=check.worst_flip,
        flipped_end_to_end=flipped,
        largest_difference=max(float(np.abs(a - _nhwc(b)).max()) for a, b in outputs),
        largest_output=max(float(b.abs().max()) for _, b in outputs),
        engine=engine,
    )


# ------------------------------------------------------------------------------------------------------- PyTorch's side


def _pictures(example: Tensor) -> Tensor:
    """The example's first input and a random one of the same spread."""
    first = example[:1]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(first.shape, generator=generator).to(first)
    spread = first.std() if first.numel() > 1 and first.std() > 0 else torch.ones(()).to(first)
    return torch.cat([first, noise * spread + first.mean()])


def _nhwc(tensor: Tensor) -> np.ndarray:
    """A tensor N,C,H,W, N,C,L or N,C as the engine's map."""
    array = tensor.detach().cpu().numpy()
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    if array.ndim == 3:
        return np.ascontiguousarray(array.transpose(0, 2, 1)[:, None])
    return array[:, None, None]


class _Recorder(fx.Interpreter):
    """Runs an exported graph and keeps a copy of the values that are asked for (later in-place writes don't change
    it)."""

    def __init__(self, module: torch.fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted, self.kept = wanted, {}  # type: tuple[set[str], dict[str, Tensor]]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.wanted and isinstance(result, Tensor):
            self.kept[n.name] = result.detach().clone()
        return result


@dataclass
class TorchValues:
    kept: dict[str, Tensor]
    outputs: list[Tensor]
    nodes: dict[str, fx.Node]
    constants: dict[str, Any]

    def map(self, name: str) -> np.ndarray:
        return _nhwc(self.kept[name])

    def rms(self, name: str) -> float:
        return float(self.kept[name].double().square().mean().sqrt()) if name in self.kept else 0.0


def recorded(model: nn.Module, exported: Exported, fused: Fused, inputs: list[Tensor]) -> TorchValues:
    """All of PyTorch's values, after checking that the exported graph gives what the model gives."""
    constants = constants_of(exported.program)
    names = iter(inputs)
    module = exported.program.graph_module
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    arguments = [constants[n.name].tensor if n.name in constants else next(names, None) for n in placeholders]
    wanted = {s for sources in (*fused.value_sources.values(), *fused.op_sources) for s in sources}
    wanted |= {a.name for n in module.graph.nodes for a in n.all_input_nodes if str(n.target).startswith("leanconv.")}
    recorder = _Recorder(module, wanted)
    args = tuple(t.clone() for t in inputs[: len(exported.args)])
    kwargs = dict(zip(exported.kwargs, (t.clone() for t in inputs[len(exported.args) :]), strict=True))
    with evaluation(model):
        expected = [t for t in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor)]
        outputs = list(recorder.run(*(a.clone() if isinstance(a, Tensor) else a for a in arguments)))
    for a, b in zip(expected, outputs, strict=True):
        if a.shape != b.shape or not torch.allclose(
            a, b, rtol=TOLERANCE, atol=TOLERANCE * float(a.square().mean().sqrt())
        ):
            raise CompileError(
                f"torch.export changed the network: outputs differ by up to {float((a - b).abs().max()):.1e}; check "
                "forward() for random numbers, state that it changes, and branches on torch.compiler.is_exporting()"
            )
    return TorchValues(recorder.kept, outputs, {n.name: n for n in module.graph.nodes}, constants)


def _sourced(fused: Fused, torch_values: TorchValues) -> list[tuple[int, str]]:
    """The values of the Program that PyTorch has too, with the name of PyTorch's node."""
    found = []
    for value, sources in fused.value_sources.items():
        known = [s for s in sources if s in torch_values.kept]
        if known:
            found.append((value, known[0]))
    return found


class _TorchCheck:
    """Step 2: each operator on PyTorch's own values."""

    def __init__(self, exported: Exported, fused: Fused, torch_values: TorchValues) -> None:
        self.fused, self.torch = fused, torch_values
        self.source = dict(_sourced(fused, torch_values))
        self.values: list[np.ndarray | None] = [None] * len(fused.program.values)
        for i in fused.program.inputs:
            self.values[i.value] = torch_values.map(self.source[i.value])
        self.signs = self.flipped = 0
        self.worst_flip = 0.0

    def operator(self, index: int) -> None:
        program, op = self.fused.program, self.fused.program.ops[index]
        trace = reference.Trace()
        reference.run_op(program, op, self.values, trace)
        assert trace.head is not None
        if op.kind in ("binary_conv", "binary_conv_transpose"):
            sums = self._sums(self.fused.op_origins[index])
            if not np.array_equal(sums, trace.head):
                raise fail(op, f"{int((sums != trace.head).sum())} integer sums differ from PyTorch's")
        sources = [*self.fused.op_sources[index], *(self.source[v] for v in op.inputs if v in self.source)]
        scale = max((self.torch.rms(s) for s in sources), default=0.0)
        for value in written(op):
            if value not in self.source:
                continue  # PyTorch never computes it; whatever reads it is compared
            ours, theirs = self.values[value], self.torch.map(self.source[value])
            assert ours is not None
            if ours.shape != theirs.shape:
                raise fail(op, f"value {value} has the shape {ours.shape}, PyTorch's {theirs.shape}")
            if program.values[value].type == "bits":
                self._signs(op, value, ours, theirs, trace.before_sign[value], scale)
            else:
                compare_real(op, ours, theirs, scale, "PyTorch")
            self.values[value] = theirs.astype(ours.dtype)

    def _sums(self, name: str) -> np.ndarray:
        """PyTorch's own integer sums of a binary layer: the marker without scale and bias."""
        node = self.torch.nodes[name]
        known = {**{k: c.tensor for k, c in self.torch.constants.items()}, **self.torch.kept}
        args = [known[a.name] if isinstance(a, fx.Node) else a for a in node.args]
        args[2], args[3] = None, "sign"
        with torch.no_grad():
            return _nhwc(node.target(*args))  # type: ignore[operator]

    def _signs(
        self, op: Op, value: int, ours: np.ndarray, theirs: np.ndarray, before: np.ndarray, scale: float
    ) -> None:
        node = self.torch.nodes[self.source[value]]
        argument = node.args[0]
        if str(node.target) == "leanconv.sign.default" and isinstance(argument, fx.Node):
            torch_before = self.torch.map(argument.name)
            scale = max(scale, self.torch.rms(argument.name))
            compare_real(op, before, torch_before, scale, "PyTorch before the sign")
            before = torch_before
        flips = ours != theirs
        self.signs += flips.size
        if not flips.any():
            return
        farthest = float(np.abs(before[flips]).max())
        if not farthest <= TOLERANCE * scale:
            raise fail(
                op,
                f"{int(flips.sum())} signs differ from PyTorch's, one of them {farthest:.1e} away from the threshold "
                f"(allowed: {TOLERANCE * scale:.1e})",
            )
        self.flipped += int(flips.sum())
        self.worst_flip = max(self.worst_flip, farthest / scale if scale else 0.0)
