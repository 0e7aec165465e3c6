"""The engines that a network can be timed beside, and how their names are written."""

from __future__ import annotations

from dataclasses import dataclass

from leanconv.extras import need

# name: (libraries it needs, the extra that brings them, precision of its arithmetic)
ENGINES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "torch": (("torch", "timm"), "train", "float32"),
    "torch-bf16": (("torch", "timm"), "train", "bfloat16"),
    "onnxruntime": (("onnxruntime", "onnx", "onnxscript", "torch", "timm"), "train,export,bench", "float32"),
    "onnxruntime-int8": (("onnxruntime", "onnx", "onnxscript", "torch", "timm"), "train,export,bench", "int8"),
    "openvino": (("openvino", "onnx", "onnxscript", "torch", "timm"), "train,export,bench", "float32"),
    "openvino-bf16": (("openvino", "onnx", "onnxscript", "torch", "timm"), "train,export,bench", "bfloat16"),
    "openvino-int8": (
        ("openvino", "onnxruntime", "onnx", "onnxscript", "torch", "timm"),
        "train,export,bench",
        "int8",
    ),
}


class BenchError(ValueError):
    """A measurement that cannot be made or whose results disagree; the text says why and what to do."""


@dataclass(frozen=True)
class Rival:
    """One engine and what it runs: the float twin, or with `binary` the same binary network as leanconv."""

    engine: str
    binary: bool = False

    @property
    def name(self) -> str:
        return f"{self.engine}:binary" if self.binary else self.engine

    @property
    def precision(self) -> str:
        return ENGINES[self.engine][2]

    @property
    def library(self) -> str:
        return self.engine.partition("-")[0]


def parse_rivals(text: str) -> list[Rival]:
    """Read a list such as ``torch,onnxruntime-int8,torch:binary``. Raises BenchError.

    >>> [rival.name for rival in parse_rivals("torch, openvino-int8,torch:binary")]
    ['torch', 'openvino-int8', 'torch:binary']
    """
    rivals: list[Rival] = []
    for name in (part.strip() for part in text.split(",")):
        if not name:
            continue
        engine, colon, kind = name.partition(":")
        if engine not in ENGINES or (colon and kind != "binary"):
            raise BenchError(f"unknown rival {name!r}; known: {', '.join(ENGINES)}, each also as X:binary")
        rival = Rival(engine, bool(colon))
        if rival.binary and rival.precision != "float32":
            raise BenchError(f"{name}: the binary network is not rounded once more; use {rival.library}:binary")
        if rival not in rivals:
            rivals.append(rival)
    return rivals


def check_installed(rivals: list[Rival]) -> None:
    """Refuse rivals whose libraries are missing, naming the extras to install. Raises MissingExtraError."""
    for rival in rivals:
        modules, extra, _ = ENGINES[rival.engine]
        need(f"`leanconv bench --rivals {rival.name}`", extra, *modules)
