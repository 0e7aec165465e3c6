"""Single convolutions: ours, fused, against the processor's own peak, and rivals on the same shapes, in one run.

    python benchmarks/layers.py                            one thread, batch 1, all rivals
    python benchmarks/layers.py --rivals ""                ours alone, as a share of the peak: under a minute
    python benchmarks/layers.py --extra --json results/speed/MACHINE/layers.json
    python benchmarks/layers.py --threads 2 --json results/speed/MACHINE/layers_2threads.json

The layers are the 16 binary 3x3 convolutions of bireal_resnet18 at 224x224. Ours are measured where they run, inside
that network, each with its batch norm, shortcut, sign and packing; `--extra` adds 1x1 layers and odd widths, inside
chains of six residual blocks. The peak is xor, popcount and addition over registers (benchmarks/peak.py), measured
between the rounds; the columns avx512 and avx2 are the engine held to that instruction set (LEANCONV_ISA), their shares
those of its own best form.

A rival runs the bare convolution, in float, bf16 or int8 (QDQ: uint8 activations, int8 weights for each channel), alone
in chains: a layer is (6 of them - 2 of them) / 4, so that the edges of a network cancel (leanconv.bench.chains). Every
engine has a process of its own, batches of 60 ms take turns in random order; medians, and in brackets minima.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leanconv import engine
from leanconv.bench import chains
from leanconv.bench.agreement import TOLERANCE
from leanconv.bench.chains import Layer
from leanconv.bench.coordinator import BATCH_SECONDS, summarize, take_turns
from leanconv.bench.machine import describe
from leanconv.bench.process import Held, Worker
from leanconv.bench.rivals import BenchError, Rival, check_installed, parse_rivals
from leanconv.complexity import complexity
from leanconv.engine import peaks as limits_of
from leanconv.program import Program, write_atomic

NETWORK, SIZE = "bireal_resnet18", 224
RIVALS = "torch,torch-bf16,onnxruntime,onnxruntime-int8,openvino,openvino-bf16,openvino-int8"
EXTRA = tuple(Layer(c, c, s, kernel=1) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7)))
EXTRA += tuple(Layer(c, c, 28) for c in (41, 53, 96))
PEAK_SECONDS = 0.2


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Packed:
    """A packed file that holds layers to be measured: operator name -> layer."""

    key: str
    file: Path
    pictures: Path
    layers: dict[str, Layer]


def packed_network(batch: int, folder: Path) -> Packed:
    """bireal_resnet18 with its 16 convolutions."""
    from leanconv.bench.subject import from_network

    say(f"compiling {NETWORK}")
    subject = from_network(NETWORK, SIZE, batch, folder)
    np.save(folder / "pictures.npy", subject.pictures)
    rows = complexity(Program.load(subject.packed), (SIZE, SIZE))["layers"]
    found = {row["name"]: layer_of(row) for row in rows if row["kind"] == "binary_conv"}
    return Packed(NETWORK, subject.packed, folder / "pictures.npy", found)


def layer_of(row: dict[str, Any]) -> Layer:
    """The shape of a binary convolution in a table of :func:`leanconv.complexity.complexity`.

    >>> row = {"input": [56, 56, 64], "output": [28, 28, 128], "macs_binary": 28 * 28 * 9 * 64 * 128}
    >>> layer_of(row).name
    '3x3, 64 -> 128 @56, stride 2'
    """
    (height, _, channels), (out_height, out_width, out_channels) = row["input"], row["output"]
    taps = row["macs_binary"] // (out_height * out_width * channels * out_channels)
    return Layer(channels, out_channels, height, round(taps**0.5), round(height / out_height))


def packed_chain(layer: Layer, batch: int, folder: Path) -> Packed:
    """Six blocks of one layer; the four inner ones count, since they read and write packed signs."""
    import torch

    import leanconv

    key = layer.name
    say(f"compiling {key}")
    chain = (layer,) * chains.LONG
    shown = chains.maps(chain, batch)
    program = leanconv.compile(chains.binary_network(chain), torch.from_numpy(np.concatenate([shown, shown])[:2]))
    file = folder / f"{len(list(folder.iterdir()))}.lconv"
    program.save(file)
    np.save(file.with_suffix(".npy"), shown)
    names = [op.name for op in program.ops if op.kind == "binary_conv"]
    assert len(names) == chains.LONG, f"{key}: the chain was compiled to {len(names)} binary convolutions"
    return Packed(key, file, file.with_suffix(".npy"), dict.fromkeys(names[1:-1], layer))


@dataclass
class Ours:
    """The engine on one packed file with one instruction set, and what it took in every round."""

    isa: str
    packed: Packed
    held: Held
    rounds: list[dict[str, float]] = field(default_factory=list)  # ms of every operator, by its name

    def job(self) -> float:
        reply = self.held.ask(do="profile", seconds=BATCH_SECONDS)
        by_name: dict[str, list[float]] = {}
        for rows in reply["profiles"]:
            for row in rows:
                by_name.setdefault(row["name"], []).append(row["ms"])
        self.rounds.append({name: statistics.median(values) for name, values in by_name.items()})
        return float(reply["cpu"])

    def times(self) -> dict[str, list[float]]:
        """Milliseconds, round by round, of the operators of each layer together, by its name; "all": of all layers."""
        found: dict[str, list[float]] = {"all": []}
        for rows in self.rounds:
            sums: dict[str, float] = {}
            for name, layer in self.packed.layers.items():
                sums[layer.name] = sums.get(layer.name, 0.0) + rows[name]
            for name, ms in (sums | {"all": sum(sums.values())}).items():
                found.setdefault(name, []).append(ms)
        return found


@dataclass
class Theirs:
    """A rival on the chains of all layers."""

    rival: Rival
    held: dict[tuple[Layer, ...], Held]
    batches: dict[tuple[Layer, ...], list[list[float]]] = field(default_factory=dict)

    def job(self, chain: tuple[Layer, ...]) -> float:
        reply = self.held[chain].ask(do="time", seconds=BATCH_SECONDS)
        self.batches.setdefault(chain, []).append(reply["ms"])
        return float(reply["cpu"])

    def layer(self, layer: Layer) -> dict[str, float]:
        timings = {chain: summarize(batches) for chain, batches in self.batches.items()}
        return {
            "ms": chains.layer_time(layer, {chain: timing.ms for chain, timing in timings.items()}),
            "fastest_ms": chains.layer_time(layer, {chain: timing.fastest_ms for chain, timing in timings.items()}),
        }


def write_chains(layers: list[Layer], rivals: list[Rival], batch: int, folder: Path) -> dict[tuple[Layer, ...], Path]:
    """One stem of file names for every chain: STEM.json for torch, STEM.onnx, STEM.int8.onnx, STEM.npy (the input)."""
    files: dict[tuple[Layer, ...], Path] = {}
    for chain in dict.fromkeys(chain for layer in layers for chain in chains.chains(layer)):
        stem = folder / f"chain{len(files)}"
        files[chain] = stem
        shown = chains.maps(chain, batch)
        np.save(stem.with_suffix(".npy"), shown)
        chains.save(chain, stem.with_suffix(".json"))
        if any(rival.library != "torch" for rival in rivals):
            chains.save_onnx(chain, batch, stem.with_suffix(".onnx"))
        if any(rival.precision == "int8" for rival in rivals):
            from leanconv.bench.quantize import quantize

            say(f"quantising {len(chain)} x {chain[0].name}")
            quantize(stem.with_suffix(".onnx"), stem.with_suffix(".int8.onnx"), shown, batch)
    return files


def start_rival(
    rival: Rival, worker: Worker, files: dict[tuple[Layer, ...], Path], threads: int, batch: int
) -> tuple[Theirs, dict[str, Any]]:
    """Load every chain, and compare what the float engines give with torch. Raises BenchError."""
    suffix = ".json" if rival.library == "torch" else ".int8.onnx" if rival.precision == "int8" else ".onnx"
    about: dict[str, Any] = {}
    held = {}
    for chain, stem in files.items():
        held[chain] = worker.holding(stem.name)
        shown, file = str(stem.with_suffix(".npy")), str(stem.with_suffix(suffix))
        command = {"engine": rival.engine, "path": file, "threads": threads, "batch": batch, "input": shown}
        about = held[chain].ask(do="load", **command)["about"]
        if rival.precision == "float32":
            given = stem.with_suffix(f".{rival.name}.npy")
            held[chain].ask(do="run", input=shown, output=str(given))
            compare_with_torch(rival, chain, np.load(given), stem)
    return Theirs(rival, held), about


def compare_with_torch(rival: Rival, chain: tuple[Layer, ...], given: np.ndarray, stem: Path) -> None:
    """Raises BenchError where a float engine gives other values than the chain has."""
    from leanconv.bench.networks import logits

    expected = logits(chains.load(stem.with_suffix(".json")), np.load(stem.with_suffix(".npy")))
    difference = float(np.abs(given - expected).max() / expected.std()) if given.shape == expected.shape else np.inf
    if not difference < TOLERANCE:
        raise BenchError(f"{rival.name} does not compute {chain[0].name} as torch does: it differs by {difference:.2g}")


def measure(
    threads: int, batch: int, rounds: int, rivals: list[Rival], isas: list[str], extra: list[Layer]
) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    check_installed(rivals)
    with tempfile.TemporaryDirectory(prefix="leanconv-layers-") as temporary, ExitStack() as stack:
        folder = Path(temporary)

        def worker(name: str) -> Worker:
            made = Worker(name, threads)
            stack.callback(made.close)
            return made

        files = [packed_network(batch, folder), *(packed_chain(layer, batch, folder) for layer in extra)]
        mine, about, ours = worker("leanconv"), {}, []
        for isa in isas:
            for packed in files:
                held = mine.holding(f"{packed.key} {isa}")
                where = {"path": str(packed.file), "input": str(packed.pictures), "isa": isa}
                reply = held.ask(do="load", engine="leanconv", threads=threads, batch=batch, **where)
                about["leanconv"] = {"version": reply["about"]["version"]}
                ours.append(Ours(isa, packed, held))
        counts = Counter(files[0].layers.values())
        layers = [*counts, *extra]
        theirs = []
        written = write_chains(layers, rivals, batch, folder) if rivals else {}
        for rival in rivals:
            say(f"starting {rival.name}")
            started, about[rival.name] = start_rival(rival, worker(rival.name), written, threads, batch)
            theirs.append(started)
        limits: list[dict[str, Any]] = []

        def peaks() -> float:
            reply = mine.ask(do="peaks", seconds=PEAK_SECONDS, threads=threads)
            limits.append(reply["peaks"])
            return float(reply["cpu"])

        jobs = [peaks, *(entry.job for entry in ours)]
        jobs += [functools.partial(entry.job, chain) for entry in theirs for chain in entry.held]
        say(f"timing, {rounds} rounds of {len(jobs)} batches")
        other_load = take_turns(jobs, rounds)
    return {
        "machine": describe(),
        "threads": threads,
        "batch": batch,
        "rounds": rounds,
        "other_load": other_load,
        "about": about,
        "isas": isas,
        "peaks": best_of(limits),
        "layers": [row(layer, counts.get(layer, 0), batch, ours, theirs, limits) for layer in layers],
        "total": total(counts, batch, ours, theirs, limits),
    }


def best_of(limits: list[dict[str, Any]]) -> dict[str, float]:
    """The best binary rate of each instruction set over all rounds, GMAC/s."""
    found: dict[str, float] = {}
    for isa in engine.isa_names():
        rates = [best.gmacs for entry in limits if (best := peaks_of(entry).best("binary", isa)) is not None]
        if rates:
            found[isa] = max(rates)
    return found


def peaks_of(entry: dict[str, Any]) -> limits_of.Peaks:
    arithmetic = tuple(limits_of.Rate(**rate) for rate in entry["arithmetic"])
    bandwidth = tuple(limits_of.Bandwidth(**level) for level in entry["bandwidth"])
    return limits_of.Peaks(entry["clock_ghz"], entry["threads"], arithmetic, bandwidth)


def timed(rounds: list[float], count: int, macs: int, gmacs: float) -> dict[str, float]:
    """Median and least time of one of `count` equal layers with `macs` multiply-adds, and its shares of the peak.

    >>> timed([2.0, 4.0, 3.0], 2, 10**9, 1000.0)
    {'ms': 1.5, 'fastest_ms': 1.0, 'share': 0.6666666666666666, 'fastest_share': 1.0}
    """
    ms, fastest = statistics.median(rounds) / count, min(rounds) / count
    limit = macs / gmacs / 1e6
    return {"ms": ms, "fastest_ms": fastest, "share": limit / ms, "fastest_share": limit / fastest}


def row(
    layer: Layer, count: int, batch: int, ours: list[Ours], theirs: list[Theirs], limits: list[dict[str, Any]]
) -> dict[str, Any]:
    peak = best_of(limits)
    mine = {}
    for entry in ours:
        if (rounds := entry.times().get(layer.name)) is not None:
            times = sum(held == layer for held in entry.packed.layers.values())
            mine[entry.isa] = timed(rounds, times, layer.macs * batch, peak[entry.isa])
    their = {entry.rival.name: entry.layer(layer) for entry in theirs}
    return {"layer": layer.name, "count": count, "macs": layer.macs * batch, "leanconv": mine, "rivals": their}


def total(
    counts: Counter[Layer], batch: int, ours: list[Ours], theirs: list[Theirs], limits: list[dict[str, Any]]
) -> dict[str, Any]:
    """All convolutions of the network together; a rival's is the sum of its layers."""
    macs = sum(layer.macs * count for layer, count in counts.items()) * batch
    peak = best_of(limits)
    mine = {
        entry.isa: timed(entry.times()["all"], 1, macs, peak[entry.isa])
        for entry in ours
        if entry.packed.key == NETWORK
    }
    their = {
        entry.rival.name: {
            key: sum(count * entry.layer(layer)[key] for layer, count in counts.items()) for key in ("ms", "fastest_ms")
        }
        for entry in theirs
    }
    return {
        "layer": f"all {counts.total()}",
        "count": counts.total(),
        "macs": macs,
        "leanconv": mine,
        "rivals": their,
    }


def markdown(result: dict[str, Any]) -> str:
    """A row a layer; the last but one their sum, the last how many times longer the sum takes than ours."""
    isas = result["isas"]
    rivals = list(result["total"]["rivals"])
    header = ["layer", "times"]
    for isa in isas:
        header += [f"{isa}, ms", "of peak"]
    lines = ["| " + " | ".join([*header, *rivals]) + " |", "|---|" + "---:|" * (len(header) + len(rivals) - 1)]
    for entry in [*result["layers"], result["total"]]:
        cells = [entry["layer"], str(entry["count"] or "")]
        for isa in isas:
            mine = entry["leanconv"][isa]
            cells += [
                f"{mine['ms']:.4f} ({mine['fastest_ms']:.4f})",
                f"{mine['share']:.0%} ({mine['fastest_share']:.0%})",
            ]
        cells += [f"{r['ms']:.3f} ({r['fastest_ms']:.3f})" for r in (entry["rivals"][name] for name in rivals)]
        lines.append("| " + " | ".join(cells) + " |")
    everything = result["total"]
    base = everything["leanconv"][isas[0]]

    def longer(entry: dict[str, float]) -> str:
        return f"{entry['ms'] / base['ms']:.1f}x ({entry['fastest_ms'] / base['fastest_ms']:.1f}x)"

    cells = ["ratio", ""]
    for isa in isas:
        cells += [longer(everything["leanconv"][isa]), ""]
    lines.append("| " + " | ".join([*cells, *(longer(everything["rivals"][name]) for name in rivals)]) + " |")
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    limits = ", ".join(f"{isa} {result['peaks'][isa]:,.0f} GMAC/s" for isa in isas)
    note = (
        f"{result['machine']['cpu']}, {threads}, batch {result['batch']}; medians (minima) of {result['rounds']} "
        f"interleaved rounds in one run. Peak of xor, popcount and addition: {limits}."
    )
    return "\n".join([*lines, "", note])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--rivals", default=RIVALS, help=f"{RIVALS} or some of them; empty: ours alone")
    parser.add_argument("--isa", nargs="+", help="instruction sets of ours (those that differ here, without portable)")
    parser.add_argument("--extra", action="store_true", help="also 1x1 layers and 41, 53 and 96 channels")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    rivals = parse_rivals(options.rivals)
    if any(rival.binary for rival in rivals):
        raise SystemExit("a rival's layers are real-valued: no :binary here")
    others = ("portable", "avx512vnni")  # the latter counts bits as avx512 does
    isas = options.isa or [isa for isa in engine.isa_names() if isa not in others] or ["portable"]
    unknown = [isa for isa in isas if isa not in engine.isa_names()]
    if unknown:
        raise SystemExit(f"this processor does not run {', '.join(unknown)}; it has {', '.join(engine.isa_names())}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    extra = list(EXTRA) if options.extra else []
    result = measure(options.threads, options.batch, options.rounds, rivals, isas, extra)
    if options.json is not None:
        write_atomic(options.json, (json.dumps(result, indent=1) + "\n").encode())
    print(markdown(result))


if __name__ == "__main__":
    main()
