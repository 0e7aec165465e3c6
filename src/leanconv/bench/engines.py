"""How each engine loads a network and runs a batch; used inside the workers only, so that each imports one library.

`prepare` turns pictures into the engine's own input once, outside the timing; `run` is what is timed; `result` turns
what it gave into a numpy array, outside the timing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class Engine(Protocol):
    about: dict[str, Any]

    def prepare(self, pictures: np.ndarray) -> Any: ...

    def run(self, prepared: Any) -> Any: ...

    def result(self, output: Any) -> np.ndarray: ...


@dataclass
class Leanconv:
    """Our engine on a packed file; takes raw pictures (uint8 NHWC) where the file says how they are normalised."""

    model: Any
    about: dict[str, Any] = field(default_factory=dict)

    def prepare(self, pictures: np.ndarray) -> Any:
        return np.ascontiguousarray(pictures)

    def run(self, prepared: Any) -> Any:
        return self.model(prepared)

    def result(self, output: Any) -> np.ndarray:
        return first(output)

    def profile(self, prepared: Any, repeats: int) -> list[dict[str, Any]]:
        """Name, kind, milliseconds and multiply-adds of every operator."""
        return [dict(row) for row in self.model.profile(prepared, repeats=repeats)]


@dataclass
class Torch:
    """PyTorch eager in inference mode, in the memory format that is quicker for this network."""

    model: Any
    torch: Any
    channels_last: bool = False
    dtype: Any = None  # of pictures and weights; None: float32
    about: dict[str, Any] = field(default_factory=dict)

    def prepare(self, pictures: np.ndarray) -> Any:
        tensor = self.torch.from_numpy(np.array(pictures)).to(self.dtype)
        return tensor.contiguous(memory_format=self.torch.channels_last) if self.channels_last else tensor

    def run(self, prepared: Any) -> Any:
        with self.torch.inference_mode():
            return self.model(prepared)

    def result(self, output: Any) -> np.ndarray:
        return np.asarray((output[0] if isinstance(output, (tuple, list)) else output).float().numpy())


@dataclass
class OnnxRuntime:
    session: Any
    input: str
    outputs: list[str]
    about: dict[str, Any] = field(default_factory=dict)

    def prepare(self, pictures: np.ndarray) -> Any:
        return np.ascontiguousarray(pictures)

    def run(self, prepared: Any) -> Any:
        return self.session.run(self.outputs, {self.input: prepared})

    def result(self, output: Any) -> np.ndarray:
        return np.asarray(output[0])


@dataclass
class OpenVino:
    request: Any
    about: dict[str, Any] = field(default_factory=dict)

    def prepare(self, pictures: np.ndarray) -> Any:
        return np.ascontiguousarray(pictures)

    def run(self, prepared: Any) -> Any:
        return self.request.infer([prepared], share_inputs=True, share_outputs=True)

    def result(self, output: Any) -> np.ndarray:
        return np.array(output[0])


def first(output: Any) -> np.ndarray:
    """The first output of a model that may have several."""
    return np.asarray(next(iter(output.values())) if isinstance(output, dict) else output)


def load(command: dict[str, Any]) -> Engine:
    """Load the network that a `load` command names."""
    kind, threads = command["engine"], command["threads"]
    if kind == "leanconv":
        return _leanconv(command["path"], threads, command.get("isa"))
    if kind.startswith("torch"):
        return _torch(command["path"], threads, np.load(command["input"])[: command["batch"]], kind == "torch-bf16")
    if kind.startswith("onnxruntime"):
        return _onnxruntime(command["path"], threads, command["batch"])
    return _openvino(command["path"], threads, np.load(command["input"])[: command["batch"]].shape, kind)


def _leanconv(path: str, threads: int, isa: str | None) -> Engine:
    import leanconv
    from leanconv import engine

    model = engine.load(path, threads=threads, isa=isa)
    return Leanconv(model, {"version": leanconv.__version__, "isa": model.isa, "threads": model.threads})


def _torch(path: str, threads: int, example: np.ndarray, bf16: bool) -> Engine:
    import torch

    from leanconv.bench.networks import load_network
    from leanconv.bench.worker import timed_batch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # can be set only once
        torch.set_num_interop_threads(1)
    dtype = torch.bfloat16 if bf16 else torch.float32
    model: Any = load_network(path).to(dtype)
    made = []
    for channels_last in (False, True):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        engine = Torch(model.to(memory_format=layout), torch, channels_last, dtype)
        prepared = engine.prepare(example)
        times = timed_batch(functools.partial(engine.run, prepared), 0.1)
        made.append((sorted(times)[len(times) // 2], channels_last))
    channels_last = min(made)[1]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    about = {"version": torch.__version__, "layout": "channels_last" if channels_last else "contiguous"}
    return Torch(model.to(memory_format=layout), torch, channels_last, dtype, about)


def _onnxruntime(path: str, threads: int, batch: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    probe = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    free = probe.get_inputs()[0].shape[0]
    if isinstance(free, str):  # a fixed batch is the better case for the rival
        options.add_free_dimension_override_by_name(free, batch)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return OnnxRuntime(
        session,
        session.get_inputs()[0].name,
        [output.name for output in session.get_outputs()],
        {"version": onnxruntime.__version__},
    )


def _openvino(path: str, threads: int, shape: tuple[int, ...], kind: str) -> Engine:
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    network.reshape({network.inputs[0]: openvino.PartialShape(list(shape))})
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if kind != "openvino-int8":
        config["INFERENCE_PRECISION_HINT"] = "bf16" if kind == "openvino-bf16" else "f32"
    compiled = core.compile_model(network, "CPU", config)
    return OpenVino(compiled.create_infer_request(), {"version": openvino.__version__})
