"""Whole networks: a 1-bit network in leanconv beside the float network of its shape in every rival engine, in one run.

    python benchmarks/network.py                              bireal_resnet18, 224x224, 1 thread and 2
    python benchmarks/network.py --busy --json results/speed/MACHINE/network.json
    python benchmarks/network.py --larq larq/bin/python       beside Larq Compute Engine: it runs the 1-bit network

Measured are: the latency of batch 1 with each number of threads, ours (real-valued layers in fp32 and in int8) and the
rivals' (fp32, bf16, int8) and with `--beside` further float networks in them; the float networks in our engine; batch 8
of ours; what an AVX2 processor would see (ours held to AVX2, float networks in OpenVINO held to AVX2 by oneDNN's own
switch); loading the packed files; their bytes against the fp32 checkpoint of the float network; and with `--busy` 1,000
calls while every core has other work, against as many without.

A packed file given as the model is run as it is, without a form in int8 beside it; `--packed` adds further packed files
of the same network. Float networks and the int8 form's calibration are made up: weights do not change the time; fp32
engines must give torch's values before anything is timed.
Every engine has a process of its own; batches of 60 ms take turns in random order; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leanconv import engine
from leanconv.bench import BenchError
from leanconv.bench.agreement import check
from leanconv.bench.compare import find_subject, layer_times, write_networks
from leanconv.bench.coordinator import interleave
from leanconv.bench.machine import available_cores, describe
from leanconv.bench.process import Worker
from leanconv.bench.rivals import ENGINES, Rival, check_installed, parse_rivals
from leanconv.bench.subject import Subject, from_file, twin_of
from leanconv.program import Program, write_atomic

RIVALS = "torch,torch-bf16,onnxruntime,onnxruntime-int8,openvino,openvino-bf16,openvino-int8"
BESIDE_RIVALS = "onnxruntime-int8,openvino,openvino-int8"
AVX2_RIVAL, AVX2_SWITCH = Rival("openvino"), {"ONEDNN_MAX_CPU_ISA": "AVX2"}
LARQ_NETWORK, LARQ_INDIRECT = "bireal_resnet18", "indirect BGEMM"
BATCH, CALLS, LOADS = 8, 1000, 20


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Arm:
    """One network in one engine, in a process of its own."""

    network: str
    engine: str
    load: dict[str, Any]  # the command that loads it, without the number of threads
    bytes: int | None = None
    batch: int = 1
    real_layers: str | None = None  # of our 1-bit networks: fp32 or int8
    environment: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] | None = None
    note: str = ""

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.network, self.engine, self.note) if part)

    def start(self, threads: int) -> tuple[Worker, dict[str, Any]]:
        """A worker that has loaded it, and its answer. Raises BenchError."""
        programs = {} if self.program is None else {"program": self.program}
        worker = Worker(self.name, threads, environment=self.environment, **programs)
        try:
            return worker, worker.ask(do="load", threads=threads, batch=self.batch, **self.load)
        except BenchError:
            worker.close()
            raise


def real_layers(file: Path) -> str:
    """The arithmetic of a packed file's real-valued layers."""
    return "int8" if any(tensor.dtype == np.int8 for tensor in Program.load(file).tensors.values()) else "fp32"


def ours(
    network: str,
    file: Path,
    pictures: Path,
    note: str = "",
    isa: str | None = None,
    batch: int = 1,
    binary: bool = True,
) -> Arm:
    load = {"engine": "leanconv", "path": str(file), "input": str(pictures), "isa": isa}
    layers = real_layers(file) if binary else None
    return Arm(network, "leanconv", load, file.stat().st_size, batch, layers, note=note)


class Study:
    """The files of all arms, written once into a folder."""

    def __init__(
        self, model: str, size: int | None, packed: list[Path], rivals: list[Rival], beside: list[str]
    ) -> None:
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="leanconv-network-")))
        self.rivals = rivals
        self.subject = find_subject(model, size, BATCH, self._folder("ours"), say)
        self.network = self.subject.name or Path(model).name
        self.size = self.subject.size
        self.pictures = self.folder / "pictures.npy"
        np.save(self.pictures, self.subject.pictures)
        self.inside: dict[str, Path] = {}  # of each float network: its folder, with floats.npy and twin.npy
        self.packed = [self.subject.packed, *self._int8(model, size), *packed]
        stems = [file.stem for file in self.packed]
        if twice := {stem for stem in stems if stems.count(stem) > 1}:
            raise SystemExit(f"--packed: {', '.join(sorted(twice))} is the name of two files here; rename one")
        needed = list(dict.fromkeys([*rivals, AVX2_RIVAL, Rival("torch")]))
        twin = twin_of(self.subject)
        self.twin = str(twin.name)
        self.files: dict[tuple[str, str], Path] = {}
        self._write(needed, self.subject, twin, self.twin)
        self.checkpoint_bytes = self.files[self.twin, "torch"].stat().st_size
        self.floats = [self._float(find_subject(self.twin, size, BATCH, self._folder(f"{self.twin} packed"), say))]
        self.beside = {name: parse_rivals(BESIDE_RIVALS) for name in beside if name != self.twin}
        for name, engines in self.beside.items():
            other = find_subject(name, size, BATCH, self._folder(f"{name} packed"), say)
            self._write(list(dict.fromkeys([*engines, AVX2_RIVAL])), other, None, name)
            self.floats.append(self._float(other))

    def close(self) -> None:
        self.stack.close()

    def _folder(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def _int8(self, model: str, size: int | None) -> list[Path]:
        """The network with its real-valued layers in int8; nothing where the model is a packed file, as it is."""
        if Path(model).suffix == ".lconv":
            return []
        packed = find_subject(model, size, BATCH, self._folder("ours in int8"), say, int8=True).packed
        return [packed.rename(packed.with_stem(f"{self.network}_int8"))]

    def _float(self, subject: Subject) -> Arm:
        """A float network in our own engine."""
        pictures = subject.packed.with_name("pictures.npy")
        np.save(pictures, subject.pictures)
        return ours(str(subject.name), subject.packed, pictures, binary=False)

    def _write(self, rivals: list[Rival], subject: Subject, twin: Any, name: str) -> None:
        self.inside[name] = self._folder(name)
        np.save(self.inside[name] / "floats.npy", subject.floats)
        written = write_networks(rivals, subject, twin, self.inside[name], say)
        self.files |= {(name, rival.name): written[rival.name] for rival in rivals}

    def theirs(self, name: str, rival: Rival, note: str = "", environment: dict[str, str] | None = None) -> Arm:
        file = self.files[name, rival.name]
        load = {"engine": rival.engine, "path": str(file), "input": str(self.inside[name] / "floats.npy")}
        return Arm(name, rival.name, load, file.stat().st_size, environment=environment or {}, note=note)

    def arms(self, larq: str | None) -> list[Arm]:
        """Everything that is timed with every number of threads; our own first, one for each packed file."""
        notes = {file: "" if file == self.subject.packed else file.stem for file in self.packed}
        made = [ours(self.network, file, self.pictures, note) for file, note in notes.items()]
        made += [ours(self.network, file, self.pictures, note, batch=BATCH) for file, note in notes.items()]
        made += self.floats
        made += [self.theirs(self.twin, rival) for rival in self.rivals]
        made += [self.theirs(name, rival) for name, rivals in self.beside.items() for rival in rivals]
        if "avx2" in engine.isa_names():
            for file, note in notes.items():
                made.append(ours(self.network, file, self.pictures, f"AVX2 {note}".strip(), "avx2"))
            for name in [self.twin, *self.beside]:
                made.append(self.theirs(name, AVX2_RIVAL, "AVX2", AVX2_SWITCH))
        if larq is not None:
            program = (larq, str(Path(__file__).with_name("larq_worker.py")))
            for note in ("", LARQ_INDIRECT):
                load = {"size": self.size[0], "indirect": bool(note)}
                made.append(Arm(self.network, "Larq Compute Engine", load, program=program, note=note))
        return made


def timed(study: Study, arms: list[Arm], threads: int, rounds: int) -> dict[str, Any]:
    """All arms in turn with `threads` threads each. Raises BenchError where a float engine disagrees with torch."""
    with ExitStack() as stack:
        workers, about = {}, {}
        output = study.folder / "output.npy"
        agreement: dict[str, Any] = {}
        for arm in arms:
            say(f"starting {arm.name}, batch {arm.batch}, {threads} thread(s)")
            worker, reply = arm.start(threads)
            worker.name = f"{arm.name}, batch {arm.batch}"
            stack.callback(worker.close)
            about[arm.engine] = {"version": reply["about"]["version"]}
            arm.bytes = reply.get("bytes", arm.bytes)
            workers[worker.name] = (worker, arm)
            if arm.engine in ENGINES:
                inside = study.inside[arm.network]
                worker.ask(do="run", input=str(inside / "floats.npy"), output=str(output))
                rival = parse_rivals(arm.engine)[0]
                found = check([rival], {rival.name: np.load(output)}, np.load(inside / "twin.npy"))
                agreement[arm.name] = found[rival.name]
        say(f"timing, {threads} thread(s), {rounds} rounds of {len(workers)} batches")
        timings, other_load = interleave([worker for worker, _ in workers.values()], rounds)
    rows = [
        {
            "network": arm.network,
            "engine": arm.engine,
            "note": arm.note,
            "batch": arm.batch,
            "real_layers": arm.real_layers,
            "bytes": arm.bytes,
        }
        | timings[name].to_dict()
        for name, (_, arm) in workers.items()
    ]
    return {"threads": threads, "rows": rows, "agreement": agreement, "about": about, "other_load": other_load}


def loading(file: Path, picture: np.ndarray) -> dict[str, Any]:
    """Milliseconds from the path to a model that can be called (map, check, repack), and of its first call.

    The file lies in the page cache: it was just written.
    """
    loads, firsts = [], []
    for _ in range(LOADS):
        started = time.perf_counter()
        model = engine.load(file, threads=1)
        loaded = time.perf_counter()
        model(picture)
        firsts.append((time.perf_counter() - loaded) * 1e3)
        loads.append((loaded - started) * 1e3)
    return {
        "file": file.stem,
        "real_layers": real_layers(file),
        "bytes": file.stat().st_size,
        "ms": statistics.median(loads),
        "fastest_ms": min(loads),
        "first_call_ms": statistics.median(firsts),
    }


def profile(file: Path, size: int, threads: int) -> dict[str, Any]:
    """Every operator of a packed file beside its limit."""
    rows, _ = layer_times(from_file(file, size, 1), threads, 1)
    return {"file": file.stem, "real_layers": real_layers(file), "threads": threads, "rows": rows}


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """As many processes that never wait as there are cores."""
    program = "import itertools\nfor _ in itertools.count(): pass"
    started = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(cores)]
    try:
        time.sleep(1.0)
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def calls_under_load(arm: Arm, threads: int, calls: int, cores: int) -> dict[str, Any]:
    """Median, 95th percentile and longest of `calls` calls on the machine as it is, and with every core busy."""
    worker, _ = arm.start(threads)
    result: dict[str, Any] = {"engine": arm.engine, "note": arm.note, "threads": threads, "calls": calls}
    try:
        for state in ("quiet", "busy"):
            say(f"{calls} calls of {arm.name}, {threads} thread(s), {state}")
            if state == "quiet":
                ms = worker.ask(do="time", calls=calls)["ms"]
            else:
                with busy(cores):
                    ms = worker.ask(do="time", calls=calls)["ms"]
            cuts = statistics.quantiles(ms, n=20)
            result[state] = {"median_ms": statistics.median(ms), "p95_ms": cuts[-1], "longest_ms": max(ms)}
    finally:
        worker.close()
    return result | {"busy_processes": cores}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    rivals = parse_rivals(options.rivals)
    check_installed([*rivals, AVX2_RIVAL])
    if options.larq and Path(options.model).stem != LARQ_NETWORK:
        raise SystemExit(f"--larq runs {LARQ_NETWORK} (benchmarks/larq_worker.py), not {options.model}")
    study = Study(options.model, options.size, options.packed, rivals, options.beside)
    try:
        arms = study.arms(options.larq)
        runs = [timed(study, arms, threads, options.rounds) for threads in options.threads]
        picture = study.subject.pictures[:1]
        return {
            "machine": describe(),
            "model": study.network,
            "twin": study.twin,
            "size": study.size,
            "rounds": options.rounds,
            "runs": runs,
            "loading": [loading(file, picture) for file in study.packed],
            "profiles": [profile(file, study.size[0], 1) for file in study.packed],
            "checkpoint_bytes": study.checkpoint_bytes,
            "busy": [
                calls_under_load(arm, threads, options.calls, available_cores())
                for arm in (arms[: len(study.packed)] if options.busy else [])
                for threads in options.threads
            ],
        }
    finally:
        study.close()


def engine_text(row: dict[str, Any]) -> str:
    """
    >>> engine_text({"engine": "leanconv", "real_layers": "int8", "note": "AVX2"})
    'leanconv, 1-bit, int8 real layers, AVX2'
    """
    text = str(row["engine"])
    if row.get("real_layers"):
        text += f", 1-bit, {row['real_layers']} real layers"
    return text + (f", {row['note']}" if row["note"] else "")


def markdown(result: dict[str, Any]) -> str:
    """Latency by engine and number of threads, then loading, bytes and calls under load."""
    runs = result["runs"]
    header = ["network", "engine", "batch"]
    for run in runs:
        header += [f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}, ms", "ratio"]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    base = [min(r["ms"] for r in run["rows"] if ours_at(r, 1)) for run in runs]
    for i in sorted(range(len(runs[0]["rows"])), key=lambda i: runs[0]["rows"][i]["ms"] / runs[0]["rows"][i]["batch"]):
        row = runs[0]["rows"][i]
        cells = [row["network"], engine_text(row), str(row["batch"])]
        for run, least in zip(runs, base, strict=True):
            mine = run["rows"][i]
            cells += [f"{mine['ms']:.3f} ({mine['fastest_ms']:.3f})", f"{mine['ms'] / mine['batch'] / least:.2f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Ratios are of a picture to our quickest of batch 1; minima in brackets."]
    for entry in result["loading"]:
        smaller = result["checkpoint_bytes"] / entry["bytes"]
        lines.append(
            f"{entry['file']}.lconv ({entry['real_layers']} real layers): {entry['bytes']:,} bytes, {smaller:.1f} "
            f"times smaller than the fp32 checkpoint of {result['twin']}; loads in {entry['ms']:.2f} ms, first call "
            f"{entry['first_call_ms']:.2f} ms."
        )
    for entry in result["busy"]:
        quiet, loaded = entry["quiet"], entry["busy"]
        lines.append(
            f"{entry['calls']} calls, {entry['threads']} thread(s), {entry['busy_processes']} busy processes: median "
            f"{loaded['median_ms']:.2f} ms ({loaded['median_ms'] / quiet['median_ms']:.2f}x of quiet), p95 "
            f"{loaded['p95_ms']:.2f} ms (quiet {quiet['p95_ms']:.2f} ms)."
        )
    return "\n".join(lines)


def ours_at(row: dict[str, Any], batch: int) -> bool:
    """Whether a row is a 1-bit network in our engine with all instructions that the processor has."""
    return bool(row["real_layers"]) and row["batch"] == batch and not row["note"].startswith("AVX2")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bireal_resnet18", help="a name, a checkpoint or a packed file")
    parser.add_argument("--size", type=int)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--rivals", default=RIVALS)
    parser.add_argument("--beside", nargs="*", default=["mobilenetv2_100"], help="further float networks in the rivals")
    parser.add_argument("--packed", type=Path, nargs="+", default=[], help="further packed files of the same network")
    parser.add_argument("--larq", metavar="PYTHON", help="an interpreter that has larq_compute_engine")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls with and without busy processes")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    result = measure(options)
    if options.json is not None:
        write_atomic(options.json, (json.dumps(result, indent=1) + "\n").encode())
    print(markdown(result))


if __name__ == "__main__":
    main()
