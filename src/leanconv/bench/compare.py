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
from leanconv.bench.machine import describe
from leanconv.bench.process import Worker
from leanconv.bench.rivals import Rival, check_installed
from leanconv.bench.subject import Subject
from leanconv.extras import need

if TYPE_CHECKING:
    from leanconv.networks import Network


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
    profile: list[dict[str, Any]] | None = None
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
            "real_layers": "fp32",
            "agreement": self.agreement,
            "rounds": self.rounds,
            "other_load": self.other_load,
            "timings": {"leanconv": self.engine.to_dict()}
            | {name: timing.to_dict() for name, timing in self.rivals.items()},
            "about": self.about,
            "machine": self.machine,
        } | ({"profile": self.profile} if self.profile is not None else {})


def run_bench(
    model: str | Path,
    rivals: list[Rival] | None = None,
    *,
    threads: int = 1,
    size: int | None = None,
    batch: int = 1,
    rounds: int = 15,
    profile: bool = False,
    twin: Network | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Result:
    """Time a packed file, a checkpoint or a model by name in the engine, beside `rivals`, in one run.

    A rival runs the float twin, untrained (its weights do not change its time) unless `twin` is given, or as `X:binary`
    the same network as the engine. Every engine has a process of its own with the same number of threads; only one runs
    at a time.

    Raises BenchError, MissingExtraError, NetworkError, CheckpointError, CompileError, ProgramError.
    """
    rivals = rivals or []
    check_installed(rivals)
    with tempfile.TemporaryDirectory(prefix="leanconv-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        subject = find_subject(model, size, batch, folder, tell)
        np.save(folder / "pictures.npy", subject.pictures)
        np.save(folder / "floats.npy", subject.floats)
        files = _write_networks(rivals, subject, twin, folder, tell) if rivals else {}
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
            profile=layer_times(subject, threads, batch) if profile else None,
        )


def layer_times(subject: Subject, threads: int, batch: int) -> list[dict[str, Any]]:
    """Name, kind and milliseconds of every layer, as the engine measures them."""
    model = engines.load(subject.packed, threads=threads)
    return [dict(row) for row in model.profile(subject.pictures[:batch])]


def find_subject(model: str | Path, size: int | None, batch: int, folder: Path, tell: Callable[[str], None]) -> Subject:
    """A packed file (*.lconv), a checkpoint (any other file) or a model's name. Raises as :func:`run_bench`."""
    path = Path(model)
    if path.suffix == ".lconv":
        return subjects.from_file(path, size, batch)
    need(f"`leanconv bench {model}` (anything but a .lconv file)", "train", "torch", "timm")
    tell(f"compiling {path.name}")
    return subjects.from_network(str(model), size, batch, folder)


def _write_networks(
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
        kind = "torch" if rival.engine == "torch" else "int8" if rival.precision == "int8" else "onnx"
        files[rival.name] = write(kind, rival.binary, network)
    return files
