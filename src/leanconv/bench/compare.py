"""The whole measurement: prepare the networks, check that they agree, time them, put the result together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanconv import engine as engines
from leanconv.bench import subject as subjects
from leanconv.bench.agreement import check
from leanconv.bench.coordinator import Timing, interleave
from leanconv.bench.limits import add_limits
from leanconv.bench.machine import describe
from leanconv.bench.process import Worker
from leanconv.bench.rivals import BenchError, Rival, check_installed
from leanconv.bench.subject import Subject
from leanconv.engine import peaks
from leanconv.extras import need
from leanconv.program import Program

if TYPE_CHECKING:
    from leanconv.networks import Network

PEAK_SECONDS = 0.5


@dataclass
class Result:
    """Everything that was measured, and on what."""

    model: str
    size: list[int]
    batch: int
    threads: int
    engine: Timing
    rivals: dict[str, Timing]
    about: dict[str, dict[str, Any]]
    agreement: dict[str, dict[str, float]]
    other_load: float | None
    rounds: int
    engine_bytes: int
    real_layers: str = "fp32"
    profile: list[dict[str, Any]] | None = None
    peaks: dict[str, Any] | None = None
    machine: dict[str, Any] = field(default_factory=describe)

    @property
    def ratios(self) -> dict[str, float]:
        """How many times longer each rival took."""
        return {name: timing.ms / self.engine.ms for name, timing in self.rivals.items()}

    def to_dict(self) -> dict[str, Any]:
        """What `leanconv bench --json` writes."""
        return {
            "model": self.model,
            "engine_ms": self.engine.ms,
            "rivals_ms": {name: timing.ms for name, timing in self.rivals.items()},
            "ratios": self.ratios,
            "threads": self.threads,
            "batch": self.batch,
            "size": self.size,
            "engine_bytes": self.engine_bytes,
            "real_layers": self.real_layers,
            "agreement": self.agreement,
            "rounds": self.rounds,
            "other_load": self.other_load,
            "timings": {"leanconv": self.engine.to_dict()}
            | {name: timing.to_dict() for name, timing in self.rivals.items()},
            "about": self.about,
            "machine": self.machine,
        } | ({"profile": self.profile, "peaks": self.peaks} if self.profile is not None else {})


def run_bench(
    model: str | Path,
    rivals: list[Rival] | None = None,
    *,
    threads: int = 1,
    size: int | None = None,
    batch: int = 1,
    rounds: int = 15,
    profile: bool = False,
    int8: bool = False,
    twin: Network | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Result:
    """Time a packed file, a checkpoint or a model by name in the engine, beside `rivals`, in one run.

    A rival runs the float twin, untrained (its weights do not change its time) unless `twin` is given, or as `X:binary`
    the same network as the engine. Every engine has a process of its own with the same number of threads; only one runs
    at a time. `int8`: real-valued layers of a checkpoint or of a network by name in int8; a packed file is as it is.

    Raises BenchError, MissingExtraError, NetworkError, CheckpointError, CompileError, ProgramError.
    """
    rivals = rivals or []
    check_installed(rivals)
    with tempfile.TemporaryDirectory(prefix="leanconv-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        subject = find_subject(model, size, batch, folder, tell, int8)
        np.save(folder / "pictures.npy", subject.pictures)
        np.save(folder / "floats.npy", subject.floats)
        files = write_networks(rivals, subject, twin, folder, tell) if rivals else {}
        workers: list[Worker] = []
        about: dict[str, dict[str, Any]] = {}
        outputs: dict[str, np.ndarray] = {}
        for name, kind, file in [("leanconv", "leanconv", subject.packed)] + [
            (rival.name, rival.engine, files[rival.name]) for rival in rivals
        ]:
            tell(f"starting {name}")
            worker = Worker(name, threads)
            stack.callback(worker.close)
            shown = str(folder / ("pictures.npy" if name == "leanconv" else "floats.npy"))
            reply = worker.ask(do="load", engine=kind, path=str(file), threads=threads, batch=batch, input=shown)
            about[name] = reply["about"]
            worker.ask(do="run", input=shown, output=str(folder / "output.npy"))
            outputs[name] = np.load(folder / "output.npy")
            workers.append(worker)
        reference = np.load(folder / "twin.npy") if (folder / "twin.npy").exists() else None
        agreement = check(rivals, outputs, reference)
        total, done = rounds * len(workers), 0

        def tick() -> None:
            nonlocal done
            done += 1
            tell(f"timing {done}/{total}")

        timings, other_load = interleave(workers, rounds, tick)
        rows, limits = layer_times(subject, threads, batch, tell) if profile else (None, None)
        return Result(
            model=subject.name or Path(model).name,
            size=subject.size,
            batch=batch,
            threads=threads,
            engine=timings.pop("leanconv"),
            rivals=timings,
            about=about,
            agreement=agreement,
            other_load=other_load,
            rounds=rounds,
            engine_bytes=subject.packed.stat().st_size,
            real_layers=subject.real_layers,
            profile=rows,
            peaks=limits,
        )


def layer_times(
    subject: Subject, threads: int, batch: int, tell: Callable[[str], None] = lambda text: None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every operator's time beside what it would take at least here (:mod:`leanconv.bench.limits`), and the peaks that
    were measured for it."""
    model = engines.load(subject.packed, threads=threads)
    tell("measuring the processor's peaks")
    limits = peaks.measure(PEAK_SECONDS, threads)
    tell("timing the layers")
    rows = model.profile(subject.pictures[:batch])
    program = Program.load(subject.packed)
    return add_limits(rows, program, subject.size, batch, model.isa, limits), limits.to_dict()


def find_subject(
    model: str | Path, size: int | None, batch: int, folder: Path, tell: Callable[[str], None], int8: bool = False
) -> Subject:
    """A packed file (*.lconv), a checkpoint (any other file) or a model's name. Raises as :func:`run_bench`."""
    path = Path(model)
    if path.suffix == ".lconv":
        subject = subjects.from_file(path, size, batch)
        if int8 and subject.real_layers != "int8":
            raise BenchError(f"{path}: was compiled with fp32 layers; give the checkpoint or the model's name for int8")
        return subject
    need(f"`leanconv bench {model}` (anything but a .lconv file)", "train", "torch", "timm")
    tell(f"compiling {path.name}")
    return subjects.from_network(str(model), size, batch, folder, int8)


def write_networks(
    rivals: list[Rival], subject: Subject, twin: Network | None, folder: Path, tell: Callable[[str], None]
) -> dict[str, Path]:
    """The file that each rival loads; also `twin.npy`, what the float twin gives in torch."""
    import torch

    from leanconv.bench.networks import logits, save_network

    if any(not rival.binary for rival in rivals):
        tell("making the float twin")
        twin = twin or subjects.twin_of(subject)
        np.save(folder / "twin.npy", logits(twin.model, subject.floats))
    made: dict[tuple[str, bool], Path] = {}

    def write(kind: str, binary: bool, network: Network) -> Path:
        if (kind, binary) in made:
            return made[kind, binary]
        base = folder / ("binary" if binary else "twin")
        if kind == "torch":
            path = base.with_suffix(".safetensors")
            save_network(network, path)
        elif kind == "onnx":
            from leanconv.onnx_export import export_onnx

            tell(f"exporting {network.name} to ONNX")
            path = base.with_suffix(".onnx")
            export_onnx(network.model, torch.from_numpy(subject.floats[:2]), path)
        else:
            from leanconv.bench.quantize import quantize

            source = write("onnx", binary, network)
            tell(f"quantising {network.name} to int8")
            path = base.with_suffix(".int8.onnx")
            quantize(source, path, subject.floats)
        made[kind, binary] = path
        return path

    files: dict[str, Path] = {}
    for rival in rivals:
        network = subjects.network_for(rival, subject, twin)
        kind = "torch" if rival.library == "torch" else "int8" if rival.precision == "int8" else "onnx"
        files[rival.name] = write(kind, rival.binary, network)
    return files
