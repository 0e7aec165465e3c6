"""A network as plain data: typed, fused operators with their tensors, saved as one `.lconv` file.

The format is described in `docs/format.md`. A :class:`Program` knows nothing of torch; the compiler makes one, the
engine runs one, :mod:`leanconv.engine.reference` interprets one slowly.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

FORMAT = "leanconv"
FORMAT_VERSION = "1"

OP_KINDS = (
    "binary_conv",
    "binary_conv_transpose",
    "conv",
    "linear",
    "max_pool",
    "avg_pool",
    "global_avg_pool",
    "elementwise",
    "concat",
    "flatten",
    "gated_conv",
    "windowed_conv",
    "adaptive_avg_pool",
    "int8_conv",
)
BF16_READERS = ("elementwise", "max_pool", "avg_pool", "global_avg_pool")  # operators; the steps add and mul do, too
STEP_KINDS = (
    "affine",
    "add",
    "mul",
    "clip",
    "prelu",
    "sigmoid",
    "silu",
    "hard_sigmoid",
    "hard_swish",
    "store",
    "sign",
    "quantize",
)
WRITING_STEPS = ("store", "sign", "quantize")


class ProgramError(ValueError):
    """A packed file that is damaged, foreign, too new, or inconsistent; the text says which and what to do."""


@dataclass
class Value:
    """One map that operators exchange: `real` (float32), `bf16` (real, but stored so), `bits` (signs), `bytes` (uint8).

    `zero`, of bytes only: the byte that stands for 0, one for all channels or one for each.
    """

    type: Literal["real", "bf16", "bits", "bytes"]
    channels: int
    zero: list[int] | None = None


@dataclass
class Input:
    """A network input. `height`/`width` None: free. `dims`: 4 = NCHW, 3 = NCL, 2 = NC."""

    name: str
    value: int
    channels: int
    height: int | None
    width: int | None
    dims: int = 4


@dataclass
class Output:
    name: str
    value: int
    dims: int = 2


@dataclass
class Step:
    """One elementwise step after an operator; see the table in docs/format.md. Tensor fields hold tensor names."""

    kind: str
    value: int | None = None
    scale: str | None = None
    bias: str | None = None
    slope: str | None = None
    min: float | None = None
    max: float | None = None
    factor: float | None = None


@dataclass
class Op:
    kind: str
    name: str
    inputs: list[int]
    output: int | None = None  # concat and flatten only; every other operator writes through its steps
    attrs: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    parameters_real: int = 0


@dataclass
class Program:
    inputs: list[Input]
    outputs: list[Output]
    values: list[Value]
    ops: list[Op]
    tensors: dict[str, np.ndarray]
    preprocessing: dict[str, Any] | None = None
    classes: list[str] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The program without its tensors, as compact JSON text."""
        body = {k: v for k, v in asdict(self).items() if k != "tensors"}
        for value in body["values"]:
            if value["type"] != "bytes":
                del value["zero"]
        for op in body["ops"]:
            op["steps"] = [{k: v for k, v in s.items() if k in _STEP_FIELDS[s["kind"]]} for s in op["steps"]]
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str, tensors: dict[str, np.ndarray]) -> Program:
        body = json.loads(text)
        return Program(
            inputs=[Input(**i) for i in body["inputs"]],
            outputs=[Output(**o) for o in body["outputs"]],
            values=[Value(**v) for v in body["values"]],
            ops=[Op(**{**op, "steps": [Step(**s) for s in op["steps"]]}) for op in body["ops"]],
            tensors=tensors,
            preprocessing=body["preprocessing"],
            classes=body["classes"],
            provenance=body["provenance"],
        )

    def digest(self) -> str:
        """SHA-256 over the program text and every tensor (order and framing in docs/format.md)."""
        sha = hashlib.sha256(self.to_json().encode())
        for name in sorted(self.tensors, key=str.encode):
            t = self.tensors[name]
            sha.update(f"\n{name} {_DTYPES[t.dtype.str]} {','.join(map(str, t.shape))}\n".encode())
            sha.update(np.ascontiguousarray(t).tobytes())
        return sha.hexdigest()

    def to_bytes(self) -> bytes:
        """The packed file. Equal programs give equal bytes (the safetensors library orders its metadata at random)."""
        header: dict[str, Any] = {
            "__metadata__": {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "program": self.to_json(),
                "sha256": self.digest(),
            }
        }
        blobs, end = [], 0
        floats_first = sorted(self.tensors, key=lambda n: (_DTYPES[self.tensors[n].dtype.str], n))  # so all are aligned
        for name in floats_first:
            tensor = np.ascontiguousarray(self.tensors[name])
            begin, end = end, end + tensor.nbytes
            header[name] = {"dtype": _DTYPES[tensor.dtype.str], "shape": tensor.shape, "data_offsets": [begin, end]}
            blobs.append(tensor.tobytes())
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return b"".join([len(text).to_bytes(8, "little"), text, *blobs])

    def save(self, path: str | Path) -> int:
        """Write the packed file (to a temporary name, then rename) and return its size in bytes."""
        data = self.to_bytes()
        write_atomic(path, data)
        return len(data)

    @staticmethod
    def load(path: str | Path) -> Program:
        """Read a packed file through the native core, with all of its checks. Raises ProgramError."""
        from leanconv import _core

        try:
            text, tensors = _core.read(os.fspath(path))
        except ValueError as error:
            raise ProgramError(str(error)) from None
        return Program.from_json(text, tensors)


_DTYPES = {"|u1": "U8", "|i1": "I8", "<f4": "F32"}
_STEP_FIELDS = {
    "affine": ("kind", "scale", "bias"),
    "add": ("kind", "value"),
    "mul": ("kind", "value"),
    "clip": ("kind", "min", "max"),
    "prelu": ("kind", "slope"),
    "sigmoid": ("kind",),
    "silu": ("kind",),
    "hard_sigmoid": ("kind",),
    "hard_swish": ("kind",),
    "store": ("kind", "value"),
    "sign": ("kind", "value", "scale", "bias"),
    "quantize": ("kind", "value", "factor"),
}


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that the file is either whole or untouched."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def pack_bits(signs: np.ndarray) -> np.ndarray:
    """Pack a +-1 (or boolean, True = +1) array along its last axis, little-endian within a byte.

    >>> pack_bits(np.array([1, -1, 1, 1])).tolist()
    [13]
    """
    return np.packbits(np.asarray(signs) > 0, axis=-1, bitorder="little")


def unpack_bits(packed: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of :func:`pack_bits`: int8 +-1, last axis cut to `channels`."""
    bits = np.unpackbits(packed, axis=-1, count=channels, bitorder="little")
    return bits.astype(np.int8) * 2 - 1


def round_bf16(x: np.ndarray) -> np.ndarray:
    """float32 numbers as bfloat16 holds them, still float32: the nearest, ties to even; NaN stays NaN.

    Denormal numbers (below 2^-126) become zeros of their sign: what the instruction of x86 processors does.

    >>> round_bf16(np.array([1.0, 1.00390625, 1.01171875, np.nan], np.float32)).tolist()
    [1.0, 1.0, 1.015625, nan]
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    halves = np.where(np.isnan(x), bits | np.uint32(0x400000), nearest) & np.uint32(0xFFFF0000)
    tiny = (bits & np.uint32(0x7F800000)) == 0
    return np.where(tiny, bits & np.uint32(0x80000000), halves).view(np.float32)


def zero_points(value: Value) -> np.ndarray:
    """The byte of each channel that stands for 0, int32 [channels]."""
    assert value.zero is not None
    return np.broadcast_to(np.array(value.zero, np.int32), (value.channels,))


def _conv_size(size: int, pad: int, dilation: int, kernel: int, stride: int) -> int:
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1


def _pool_size(size: int, pad: int, dilation: int, kernel: int, stride: int, ceil_mode: bool) -> int:
    reach = size + 2 * pad - dilation * (kernel - 1) - 1
    out = (math.ceil(reach / stride) if ceil_mode else reach // stride) + 1
    if (
        ceil_mode and (out - 1) * stride >= size + pad
    ):  # the last window must start inside the picture or its left border
        out -= 1
    return out


def output_size(op: Op, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that `op` makes from an input of `size` (height, width)."""
    a = op.attrs
    if op.kind in ("binary_conv", "conv", "gated_conv", "windowed_conv", "int8_conv"):
        pads = (a["padding"][0] + a["padding"][2], a["padding"][1] + a["padding"][3])
        sizes = tuple(_conv_size(size[i], pads[i], a["dilation"][i], a["kernel"][i], a["stride"][i]) for i in (0, 1))
    elif op.kind == "binary_conv_transpose":
        sizes = tuple(
            (size[i] - 1) * a["stride"][i]
            - 2 * a["padding"][i]
            + a["dilation"][i] * (a["kernel"][i] - 1)
            + a["output_padding"][i]
            + 1
            for i in (0, 1)
        )
    elif op.kind in ("max_pool", "avg_pool"):
        dilation = a.get("dilation", [1, 1])
        sizes = tuple(
            _pool_size(size[i], a["padding"][i], dilation[i], a["kernel"][i], a["stride"][i], a["ceil_mode"])
            for i in (0, 1)
        )
    elif op.kind == "adaptive_avg_pool":
        sizes = (a["height"], a["width"])
    elif op.kind in ("global_avg_pool", "flatten", "linear"):
        sizes = (1, 1)
    else:
        sizes = size
    if min(sizes) < 1:
        raise ProgramError(f"{op.name}: an input of {size[0]}x{size[1]} is too small for this {op.kind}")
    return sizes[0], sizes[1]


def infer_sizes(program: Program, sizes: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """Height and width of every value, given those of the inputs (by value number). Raises ProgramError."""
    known: list[tuple[int, int] | None] = [sizes.get(i) for i in range(len(program.values))]

    def of(value: int) -> tuple[int, int]:
        size = known[value]
        if size is None:
            raise ProgramError(f"value {value} is read before it is written")
        return size

    for op in program.ops:
        size = of(op.inputs[0])
        if op.kind == "concat" and any(of(v) != size for v in op.inputs):
            raise ProgramError(f"{op.name}: maps of different sizes {[of(v) for v in op.inputs]} cannot be joined")
        if op.kind == "gated_conv" and of(op.inputs[1]) not in (tuple(op.attrs["kernel"]), (1, 1)):
            raise ProgramError(f"{op.name}: gains of {of(op.inputs[1])} for a kernel of {op.attrs['kernel']}")
        if op.kind == "linear" and size != (1, 1):
            raise ProgramError(f"{op.name}: a linear layer needs a 1x1 map, not {size[0]}x{size[1]}")
        if op.kind == "flatten" and size != (op.attrs["height"], op.attrs["width"]):
            raise ProgramError(
                f"{op.name}: this network was compiled for a {op.attrs['height']}x{op.attrs['width']} map here, "
                f"not {size[0]}x{size[1]}; use the picture size it was compiled with"
            )
        size = output_size(op, size)
        if op.output is not None:
            known[op.output] = size
        for step in op.steps:
            if step.value is None:
                continue
            if step.kind in WRITING_STEPS:
                known[step.value] = size
            elif of(step.value) not in (size, (1, 1)):
                raise ProgramError(f"{op.name}: cannot {step.kind} a {of(step.value)} map to a {size} map")
    return [s if s is not None else (0, 0) for s in known]
