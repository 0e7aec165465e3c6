"""The real-valued layers of a compiled network in 8 bits: `conv` and `linear` become `int8_conv`.

Weights are rounded with one scale an output channel, ``w[o] ~ s[o] * q[o]``, q int8; activations with one factor and
zero point a map, ``x ~ (u - z) / r``, u uint8. Scales and factors are those that lose least (in squares), found by a
search over how far the range is clipped; the activations' range is measured on pictures. The sum of ``(u - z) * q`` is
an exact integer; ``s / r`` joins the affine step behind it.

A first layer that reads the network's pictures takes their bytes as they are: ``(u / 255 - mean) / std`` is folded into
its weights, ``w / (255 std)``, and the zero point is the grey level next to the mean. A tap outside the picture counts
as that grey level, which is at most half a level from the 0 that the layer pads with after normalisation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from leanconv.compiler.bf16 import store_in_bf16
from leanconv.compiler.errors import CompileError
from leanconv.compiler.native import native_values, run_native
from leanconv.program import WRITING_STEPS, Op, Output, Program, Step, Value

BATCH = 8  # pictures at a time
SAMPLES = 1 << 16  # numbers of each map and batch that the search for its range sees
LONGEST = 1 << 16  # weights of a filter: its sums fit 32 bits
VERIFIED = 2  # pictures on which the engine is compared with the reference


@dataclass
class Quantization:
    """What quantising changed, measured on the calibration pictures.

    `layers`: in int8; `kept`: those in fp32, with the reason; `maps_bf16`: real maps stored in bf16; `same_class`:
    pictures whose largest first output is the same as in fp32; `largest_error`: the largest difference of an output,
    relative to the largest output.
    """

    layers: list[str]
    kept: dict[str, str]
    maps_bf16: int
    pictures: int
    same_class: int
    largest_error: float
    before: Program = field(repr=False)

    def __str__(self) -> str:
        left = "".join(f"; {name} stays in fp32 ({reason})" for name, reason in self.kept.items())
        halved = f"; {self.maps_bf16} real maps in bf16" if self.maps_bf16 else ""
        return (
            f"int8: {len(self.layers)} of {len(self.layers) + len(self.kept)} real-valued layers{left}{halved}; "
            f"the class of fp32 on {self.same_class} of {self.pictures} calibration pictures, "
            f"largest difference of an output {100 * self.largest_error:.1f} % of the largest output"
        )


@dataclass
class Range:
    """How a real map becomes bytes: ``u = clip(round(x * factor), -zero, 255 - zero) + zero``."""

    factor: float
    zero: int


def quantize_program(
    program: Program,
    pictures: Sequence[np.ndarray],
    verify: bool = True,
    real_maps: Literal["fp32", "bf16"] = "fp32",
) -> tuple[Program, Quantization | None]:
    """`program` with its real-valued layers in int8, and (with `verify`) what that changes.

    Args:
        program: a compiled network.
        pictures: one array an input. uint8 N,H,W,C: the first layer then computes on bytes, and the network takes uint8
            pictures alone; float32 N,C,H,W: what it takes stays the same.
        verify: compare the engine with the reference, and the result with `program`.
        real_maps: "bf16" stores the real maps between operators so where that is possible; see
            :mod:`leanconv.compiler.bf16`.

    Raises: CompileError where no layer can be quantised, or the engine does not give the reference's integers.
    """
    chosen, kept = choose(program)
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in kept.items()) or "it has no real-valued layer"
        raise CompileError(f"no layer of this network can be computed in int8 ({reasons}); compile it with fp32 layers")
    made = _Rewriter(program, chosen, pictures).run()
    if real_maps == "bf16":
        store_in_bf16(made)
    if not verify:
        return made, None
    native_values(made, [a[:VERIFIED] for a in pictures])
    return made, _compare(program, made, pictures, [op.name for op in chosen], kept)


def choose(program: Program) -> tuple[list[Op], dict[str, str]]:
    """The operators that can be computed in int8, and the reason for each other real-valued layer."""
    chosen, kept = [], {}
    for op in program.ops:
        if op.kind in ("gated_conv", "windowed_conv"):
            kept[op.name] = op.kind
        elif op.kind == "conv" and op.attrs["groups"] != 1:
            kept[op.name] = f"{op.attrs['groups']} groups"
        elif op.kind in ("conv", "linear"):
            weight = program.tensors[op.tensors["weight"]]
            if weight[0].size > LONGEST:
                kept[op.name] = f"filters of {weight[0].size} weights, at most {LONGEST} fit"
            else:
                chosen.append(op)
    return chosen, kept


def round_weights(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [out, ...] as int8 and one scale an output channel, float64 [out]: ``scale[o] * q[o] ~ weight[o]``.

    Of the scales that clip the largest weights by up to a half, the one with the least squared error is taken.

    >>> q, scale = round_weights(np.array([[0.5, -1.0], [0.0, 0.0]]))
    >>> q.tolist(), scale.round(5).tolist()
    ([[64, -127], [0, 0]], [0.00787, 1.0])
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1)
    whole = np.where(largest > 0, largest / 127, 1.0)
    best, least = whole, np.full(len(rows), np.inf)
    for share in np.linspace(1, 0.5, 51):
        scale = whole * share
        error = np.square(rows - scale[:, None] * np.clip(np.rint(rows / scale[:, None]), -127, 127)).sum(axis=1)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return np.clip(np.rint(weight / best.reshape(-1, *[1] * (weight.ndim - 1))), -127, 127).astype(np.int8), best


def best_range(low: float, high: float, sample: np.ndarray) -> Range:
    """The factor and zero point for a map between `low` and `high` that lose least on a sample of its numbers.

    Both ends are clipped by the same share first, then each by itself.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return Range(1.0, 0)
    sample = sample.astype(np.float64)

    def loss(a: float, b: float) -> float:
        r = _range(a, b)
        restored = np.clip(np.rint(sample * r.factor), -r.zero, 255 - r.zero) / r.factor
        return float(np.square(sample - restored).sum())

    shares = np.linspace(1, 0.3, 36)
    share = min(shares, key=lambda s: loss(low * s, high * s))
    low, high = low * share, high * share
    low = min((low * s for s in shares), key=lambda a: loss(a, high))
    high = min((high * s for s in shares), key=lambda b: loss(low, b))
    return _range(low, high)


def _range(low: float, high: float) -> Range:
    factor = float(np.float32(255 / (high - low)))
    return Range(factor, int(np.clip(np.rint(-low * factor), 0, 255)))


def _compare(
    before: Program, after: Program, pictures: Sequence[np.ndarray], layers: list[str], kept: dict[str, str]
) -> Quantization:
    theirs, ours = (run_native(p, list(pictures)) for p in (before, after))
    first = before.outputs[0].name
    same = theirs[first].reshape(len(pictures[0]), -1).argmax(1) == ours[first].reshape(len(pictures[0]), -1).argmax(1)
    error = max(
        float(np.abs(ours[name] - theirs[name]).max() / max(float(np.abs(theirs[name]).max()), 1e-30))
        for name in theirs
    )
    halved = sum(value.type == "bf16" for value in after.values)
    return Quantization(layers, kept, halved, len(pictures[0]), int(same.sum()), error, before)


class _Rewriter:
    """Makes the quantised Program; the given one stays as it is."""

    def __init__(self, program: Program, chosen: list[Op], pictures: Sequence[np.ndarray]) -> None:
        self.before = program
        self.chosen = {id(op) for op in chosen}
        self.program = replace(
            program,
            inputs=[copy.copy(i) for i in program.inputs],
            outputs=[copy.copy(o) for o in program.outputs],
            values=[copy.copy(v) for v in program.values],
            ops=[
                replace(op, inputs=list(op.inputs), tensors=dict(op.tensors), steps=[copy.copy(s) for s in op.steps])
                for op in program.ops
            ],
            tensors=dict(program.tensors),
            provenance={**program.provenance, "real_layers": "int8"},
        )
        self.pictures = pictures
        self.bytes_of: dict[int, int] = {}  # by real value
        self.ranges: dict[int, Range] = {}

    def run(self) -> Program:
        picture = self._picture_value()
        read = {op.inputs[0] for op in self.before.ops if id(op) in self.chosen} - {picture}
        self.ranges = calibrate(self.before, sorted(read), self.pictures)
        for old, op in zip(self.before.ops, list(self.program.ops), strict=True):
            if id(old) not in self.chosen:
                continue
            if op.inputs[0] == picture:
                self._first_layer(op)
            else:
                self._layer(op)
        drop_unread(self.program)
        return self.program

    def _picture_value(self) -> int | None:
        """The input whose bytes the first layer can read: pictures of known mean and std that nobody else reads."""
        rules = self.before.preprocessing
        for description, given in zip(self.before.inputs, self.pictures, strict=True):
            readers = [op for op in self.before.ops if description.value in _read(op)]
            if given.dtype != np.uint8 or rules is None or len(readers) != 1 or description.dims != 4:
                continue
            grey = 255 * np.asarray(rules["mean"], np.float64)
            fits = len(grey) == description.channels and bool(
                (np.rint(grey) >= 0).all() and (np.rint(grey) <= 255).all()
            )
            if fits and id(readers[0]) in self.chosen and readers[0].kind == "conv":
                return description.value
        return None

    def _first_layer(self, op: Op) -> None:
        rules = self.before.preprocessing
        assert rules is not None
        grey, std = (np.asarray(rules[key], np.float64) for key in ("mean", "std"))
        grey = 255 * grey
        zero = np.rint(grey)
        self.program.values[op.inputs[0]].type = "bytes"
        self.program.values[op.inputs[0]].zero = [int(z) for z in zero]
        q, scale = round_weights(self.program.tensors[op.tensors["weight"]] / (255 * std))
        constant = scale * (q.astype(np.float64) * (zero - grey)).sum(axis=(1, 2, 3))
        self._set_weight(op, q)
        self._scale(op, scale, constant)

    def _layer(self, op: Op) -> None:
        source = op.inputs[0]
        weight = self.program.tensors[op.tensors["weight"]]
        q, scale = round_weights(weight if weight.ndim == 4 else weight[:, None, None])
        self._set_weight(op, q)
        self._scale(op, scale / self.ranges[source].factor, None)
        op.inputs = [self._bytes(source)]

    def _set_weight(self, op: Op, q: np.ndarray) -> None:
        if op.kind == "linear":
            op.attrs = {**op.attrs, "kernel": [1, 1], "stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1]}
        op.attrs = {key: value for key, value in op.attrs.items() if key != "groups"}
        op.kind = "int8_conv"
        name = op.tensors["weight"]
        self.program.tensors[name] = np.ascontiguousarray(q)  # each operator has tensors of its own

    def _scale(self, op: Op, scale: np.ndarray, constant: np.ndarray | None) -> None:
        """``x * scale + constant`` in front of the steps: a part of the first one, if that is an affine."""
        first = op.steps[0] if op.steps and op.steps[0].kind == "affine" else None
        own = np.float64(1) if first is None or first.scale is None else self._float64(first.scale)
        bias = None if first is None or first.bias is None else self._float64(first.bias)
        if constant is not None:
            bias = constant * own + (0 if bias is None else bias)
        made = Step("affine", scale=self._tensor(f"{op.name}.int8_scale", (own * scale).astype(np.float32)))
        if bias is not None:
            made.bias = self._tensor(f"{op.name}.int8_bias", bias.astype(np.float32))
        op.steps[: first is not None] = [made]

    def _float64(self, name: str) -> np.ndarray:
        return self.program.tensors[name].astype(np.float64)

    def _tensor(self, name: str, array: np.ndarray) -> str:
        """A tensor under a name that no other one has."""
        while name in self.program.tensors:
            name += "_"
        self.program.tensors[name] = array
        return name

    def _bytes(self, source: int) -> int:
        """The number of a real value's bytes: a step right behind its `store` makes them, or an operator of its own."""
        if source in self.bytes_of:
            return self.bytes_of[source]
        values, ops, wanted = self.program.values, self.program.ops, self.ranges[source]
        values.append(Value("bytes", values[source].channels, [wanted.zero]))
        self.bytes_of[source] = number = len(values) - 1
        step = Step("quantize", value=number, factor=wanted.factor)
        for op in ops:
            for k, other in enumerate(op.steps):
                if other.kind == "store" and other.value == source:
                    op.steps.insert(k + 1, step)
                    return number
        made_by = next((i for i, op in enumerate(ops) if op.output == source), -1)
        ops.insert(made_by + 1, Op("elementwise", self._free_name(f"{source}.bytes"), [source], steps=[step]))
        return number

    def _free_name(self, name: str) -> str:
        taken = {op.name for op in self.program.ops}
        while name in taken:
            name += "_"
        return name


def calibrate(program: Program, values: Sequence[int], pictures: Sequence[np.ndarray]) -> dict[int, Range]:
    """The range of each of `values` (real maps) on pictures, measured with the native engine."""
    if not values:
        return {}
    seen = replace(program, outputs=[Output(f"v{v}", v, 4) for v in values])
    low, high = dict.fromkeys(values, np.inf), dict.fromkeys(values, -np.inf)
    samples: dict[int, list[np.ndarray]] = {v: [] for v in values}
    for start in range(0, len(pictures[0]), BATCH):
        got = run_native(seen, [a[start : start + BATCH] for a in pictures])
        for v in values:
            numbers = got[f"v{v}"].ravel()
            if not np.isfinite(numbers).all():
                raise CompileError(f"value {v} of the network is not finite on the calibration pictures; check them")
            low[v], high[v] = min(low[v], float(numbers.min())), max(high[v], float(numbers.max()))
            samples[v].append(numbers[:: max(1, numbers.size // SAMPLES)])
    return {v: best_range(low[v], high[v], np.concatenate(samples[v])) for v in values}


def _read(op: Op) -> list[int]:
    return [*op.inputs, *(s.value for s in op.steps if s.value is not None and s.kind not in WRITING_STEPS)]


def drop_unread(program: Program) -> None:
    """Take out, in place, the `store` steps whose values nobody reads any more, and tensors that nobody names."""
    read = {v for op in program.ops for v in _read(op)} | {o.value for o in program.outputs}
    written = {i.value for i in program.inputs}
    for op in program.ops:
        op.steps = [s for s in op.steps if s.kind != "store" or s.value in read]
        written |= {s.value for s in op.steps if s.kind in WRITING_STEPS and s.value is not None}
        written |= set() if op.output is None else {op.output}
    number = {old: new for new, old in enumerate(sorted(written))}
    program.values = [v for old, v in enumerate(program.values) if old in number]
    for entry in program.inputs:
        entry.value = number[entry.value]
    for result in program.outputs:
        result.value = number[result.value]
    for op in program.ops:
        op.inputs = [number[v] for v in op.inputs]
        op.output = None if op.output is None else number[op.output]
        for s in op.steps:
            s.value = None if s.value is None else number[s.value]
    named = {n for op in program.ops for n in op.tensors.values()}
    named |= {n for op in program.ops for s in op.steps for n in (s.scale, s.bias, s.slope) if n is not None}
    program.tensors = {name: tensor for name, tensor in program.tensors.items() if name in named}
