"""Programs for tests: a small builder that numbers values and names tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanconv import _core
from leanconv.engine import isa_names, reference
from leanconv.program import WRITING_STEPS, Input, Op, Output, Program, Step, Value, pack_bits


class Builder:
    """Makes a Program step by step; random weights come from `seed`."""

    def __init__(
        self, channels: int, *, seed: int = 0, dims: int = 4, size: tuple[int | None, int | None] = (None, None)
    ):
        self.rng = np.random.default_rng(seed)
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.outputs: list[Output] = []
        self.preprocessing: dict[str, Any] | None = None
        self.inputs: list[Input] = []
        self.input = self.add_input(channels, dims=dims, size=size)

    def add_input(self, channels: int, *, dims: int = 4, size: tuple[int | None, int | None] = (None, None)) -> int:
        value = self.value("real", channels)
        self.inputs.append(Input(f"input{len(self.inputs)}", value, channels, size[0], size[1], dims))
        return value

    def value(self, kind: Any, channels: int) -> int:
        self.values.append(Value(kind, channels))
        return len(self.values) - 1

    def tensor(self, array: np.ndarray) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = np.ascontiguousarray(array)
        return name

    def floats(self, *shape: int) -> str:
        return self.tensor(self.rng.normal(size=shape).astype(np.float32))

    def channels(self, value: int) -> int:
        return self.values[value].channels

    # --- steps
    def affine(self, channels: int, scale: bool = True, bias: bool = True) -> Step:
        return Step(
            "affine", scale=self.floats(channels) if scale else None, bias=self.floats(channels) if bias else None
        )

    def store(self, channels: int, kind: str = "real") -> Step:
        return Step("store", value=self.value(kind, channels))

    def sign(self, channels: int, scale: bool = False, bias: bool = True) -> Step:
        value = self.value("bits", channels)
        return Step("sign", value, self.floats(channels) if scale else None, self.floats(channels) if bias else None)

    def prelu(self, channels: int) -> Step:
        return Step("prelu", slope=self.floats(channels))

    # --- operators; each returns the value that its last store or sign writes
    def op(self, kind: str, inputs: Sequence[int], channels: int, steps: list[Step] | None = None, **attrs: Any) -> int:
        tensors = {k: attrs.pop(k) for k in ("weight",) if k in attrs}
        steps = [self.store(channels)] if steps is None else steps
        self.ops.append(Op(kind, f"{kind}{len(self.ops)}", list(inputs), None, attrs, tensors, steps))
        written = [s.value for s in steps if s.kind in WRITING_STEPS]
        return written[-1] if written and written[-1] is not None else -1

    def quantize(self, channels: int, factor: float = 1.0, zero: int = 0) -> Step:
        self.values.append(Value("bytes", channels, [zero]))
        return Step("quantize", value=len(self.values) - 1, factor=float(np.float32(factor)))

    def bytes(self, value: int, factor: float = 1.0, zero: int = 0) -> int:
        """The bytes of a real value."""
        c = self.channels(value)
        return self.op("elementwise", [value], c, [self.quantize(c, factor, zero)])

    def byte_input(self, zero: Sequence[int]) -> None:
        """The first input takes the bytes of pictures."""
        self.values[self.input] = Value("bytes", self.channels(self.input), list(zero))

    def int8_conv(
        self, value: int, out: int, kernel: Any = (3, 3), steps: list[Step] | None = None, *, stride: Any = (1, 1),
        padding: Any = (1, 1, 1, 1), dilation: Any = (1, 1), weight: np.ndarray | None = None,
    ) -> int:  # fmt: skip
        c = self.channels(value)
        if weight is None:
            weight = self.rng.integers(-128, 128, (out, *kernel, c)).astype(np.int8)
        return self.op(
            "int8_conv", [value], out, steps, weight=self.tensor(weight), in_channels=c, out_channels=out,
            kernel=list(kernel), stride=list(stride), padding=list(padding), dilation=list(dilation),
        )  # fmt: skip

    def bits(self, value: int) -> int:
        """The signs of a real value."""
        c = self.channels(value)
        return self.op("elementwise", [value], c, [self.sign(c, bias=False)])

    def weight_bits(self, out: int, kernel: Sequence[int], channels: int) -> str:
        return self.tensor(pack_bits(self.rng.integers(0, 2, (out, *kernel, channels)) * 2 - 1))

    def binary_conv(
        self, value: int, out: int, kernel: Any = (3, 3), steps: list[Step] | None = None, *, stride: Any = (1, 1),
        padding: Any = (1, 1, 1, 1), pad_value: int = 0, dilation: Any = (1, 1), groups: int = 1,
    ) -> int:  # fmt: skip
        c = self.channels(value)
        return self.op(
            "binary_conv", [value], out, steps, weight=self.weight_bits(out, kernel, c // groups), in_channels=c,
            out_channels=out, kernel=list(kernel), stride=list(stride), padding=list(padding), pad_value=pad_value,
            dilation=list(dilation), groups=groups,
        )  # fmt: skip

    def binary_conv_transpose(
        self, value: int, out: int, kernel: Any = (3, 3), steps: list[Step] | None = None, *, stride: Any = (2, 2),
        padding: Any = (1, 1), output_padding: Any = (0, 0), dilation: Any = (1, 1), groups: int = 1,
    ) -> int:  # fmt: skip
        c = self.channels(value)
        return self.op(
            "binary_conv_transpose", [value], out, steps, weight=self.weight_bits(out, kernel, c // groups),
            in_channels=c, out_channels=out, kernel=list(kernel), stride=list(stride), padding=list(padding),
            output_padding=list(output_padding), dilation=list(dilation), groups=groups,
        )  # fmt: skip

    def conv(
        self, value: int, out: int, kernel: Any = (3, 3), steps: list[Step] | None = None, *, stride: Any = (1, 1),
        padding: Any = (1, 1, 1, 1), dilation: Any = (1, 1), groups: int = 1, weight: np.ndarray | None = None,
    ) -> int:  # fmt: skip
        c = self.channels(value)
        shape = (out, *kernel, c // groups)
        return self.op(
            "conv", [value], out, steps, weight=self.floats(*shape) if weight is None else self.tensor(weight),
            in_channels=c, out_channels=out, kernel=list(kernel), stride=list(stride), padding=list(padding),
            dilation=list(dilation), groups=groups,
        )  # fmt: skip

    def gated_conv(
        self, value: int, gains: int, out: int, kernel: Any = (3, 3), steps: list[Step] | None = None, *, gain: str,
        stride: Any = (1, 1), padding: Any = (1, 1, 1, 1), dilation: Any = (1, 1), groups: int = 1,
        weight: np.ndarray | None = None,
    ) -> int:  # fmt: skip
        c = self.channels(value)
        shape = (out, *kernel, c // groups)
        return self.op(
            "gated_conv", [value, gains], out, steps,
            weight=self.floats(*shape) if weight is None else self.tensor(weight), in_channels=c, out_channels=out,
            kernel=list(kernel), stride=list(stride), padding=list(padding), dilation=list(dilation), groups=groups,
            gain=gain,
        )  # fmt: skip

    def windowed_conv(
        self, value: int, out: int, kernel: Any = (3, 3), steps: list[Step] | None = None, *, groups: int, window: int,
        shift: int, stride: Any = (1, 1), padding: Any = (1, 1, 1, 1), dilation: Any = (1, 1),
        weight: np.ndarray | None = None,
    ) -> int:  # fmt: skip
        shape = (out, *kernel, window)
        return self.op(
            "windowed_conv", [value], out, steps, weight=self.floats(*shape) if weight is None else self.tensor(weight),
            in_channels=self.channels(value), out_channels=out, kernel=list(kernel), stride=list(stride),
            padding=list(padding), dilation=list(dilation), groups=groups, window=window, shift=shift,
        )  # fmt: skip

    def adaptive_avg_pool(self, value: int, height: int, width: int, steps: list[Step] | None = None) -> int:
        return self.op("adaptive_avg_pool", [value], self.channels(value), steps, height=height, width=width)

    def linear(self, value: int, out: int, steps: list[Step] | None = None) -> int:
        c = self.channels(value)
        return self.op("linear", [value], out, steps, weight=self.floats(out, c), in_channels=c, out_channels=out)

    def max_pool(
        self, value: int, kernel: Any = (3, 3), stride: Any = (2, 2), padding: Any = (1, 1), dilation: Any = (1, 1),
        ceil_mode: bool = False, steps: list[Step] | None = None,
    ) -> int:  # fmt: skip
        return self.op(
            "max_pool", [value], self.channels(value), steps, kernel=list(kernel), stride=list(stride),
            padding=list(padding), dilation=list(dilation), ceil_mode=ceil_mode,
        )  # fmt: skip

    def avg_pool(
        self, value: int, kernel: Any = (2, 2), stride: Any = (2, 2), padding: Any = (0, 0), ceil_mode: bool = False,
        count_include_pad: bool = True, steps: list[Step] | None = None,
    ) -> int:  # fmt: skip
        return self.op(
            "avg_pool", [value], self.channels(value), steps, kernel=list(kernel), stride=list(stride),
            padding=list(padding), ceil_mode=ceil_mode, count_include_pad=count_include_pad,
        )  # fmt: skip

    def global_avg_pool(self, value: int, steps: list[Step] | None = None) -> int:
        return self.op("global_avg_pool", [value], self.channels(value), steps)

    def elementwise(self, value: int, steps: list[Step]) -> int:
        return self.op("elementwise", [value], self.channels(value), steps)

    def concat(self, *values: int) -> int:
        out = self.value("real", sum(self.channels(v) for v in values))
        self.ops.append(Op("concat", f"concat{len(self.ops)}", list(values), out))
        return out

    def flatten(self, value: int, height: int, width: int) -> int:
        out = self.value("real", self.channels(value) * height * width)
        self.ops.append(Op("flatten", f"flatten{len(self.ops)}", [value], out, {"height": height, "width": width}))
        return out

    def output(self, value: int, dims: int = 4) -> None:
        self.outputs.append(Output(f"output{len(self.outputs)}", value, dims))

    def program(self) -> Program:
        return Program(
            self.inputs, self.outputs, self.values, self.ops, self.tensors, self.preprocessing, None, {"model": "test"}
        )


def pictures(channels: int, height: int = 13, width: int = 10, batch: int = 2, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, channels, height, width)).astype(np.float32)


def check(
    program: Program,
    *inputs: np.ndarray,
    exact: bool,
    threads: Sequence[int] = (1, 2),
    isas: Sequence[str] | None = None,
) -> None:
    """Each instruction set (all that this machine has, or `isas`) and number of threads against the oracle.

    A failure names the set, the number of threads and the run, whether a result is wrong or the engine raises.
    """
    oracle = reference.run(program, list(inputs))
    data = program.to_bytes()
    for isa in isa_names() if isas is None else isas:
        for count in threads:
            where = f"{isa}, {count} threads"
            try:
                model = _core.Model(data, count, isa, grain_ns=0)  # every operator is split, however small
                for attempt in range(2):  # the second run meets the first one's leftovers in memory
                    where = f"{isa}, {count} threads, run {attempt}"
                    for got, want in zip(model.run(list(inputs)), oracle, strict=True):
                        assert got.shape == want.shape and got.dtype == np.float32
                        if exact:
                            np.testing.assert_array_equal(got, want)
                        else:
                            scale = float(np.sqrt(np.mean(np.square(want, dtype=np.float64)))) if want.size else 0.0
                            np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * max(scale, 1e-3))
            except Exception as error:
                error.add_note(f"on {where}")
                raise
