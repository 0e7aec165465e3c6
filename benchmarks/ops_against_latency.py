"""Operations against measured milliseconds: our 1-bit networks beside float and int8 ones in ONNX Runtime, in one run.

    python benchmarks/ops_against_latency.py           measures at 224x224; writes results/sofar_latency.json, the table
                                                       in docs/sofar.md and docs/images/ops_against_latency.svg
    python benchmarks/ops_against_latency.py --render  the table and the plot again, from the JSON file alone
    python benchmarks/ops_against_latency.py --check   exits with 1 if the table is not that of the JSON file

Every network has a process of its own; short batches are timed in turn, in random order; medians. Before any time is
taken, the compiler compares each of our networks with PyTorch, and ONNX Runtime's float networks must give PyTorch's
values. All networks are untrained: weights do not change the time. A multiply-add counts as one operation at 8 and 32
bits and as 1/64 at one bit, the stem included.

The time of a dense network is also compared with what its binary multiply-adds would take at the rate of
bireal_resnet18 as a whole; more than LIMIT times that is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.bench import BenchError
from leanconv.bench.agreement import check
from leanconv.bench.coordinator import interleave
from leanconv.bench.machine import describe
from leanconv.bench.process import Worker
from leanconv.bench.rivals import Rival, check_installed
from leanconv.complexity import complexity
from leanconv.program import write_atomic

ROOT = Path(__file__).resolve().parents[1]
OURS = ("rf_c4d8_resnet37", "drf_c2d2_densenet51", "bireal_resnet18", "binary_densenet28", "quicknet")
FLOAT = ("resnet18", "mobilenetv2_100")
RIVALS = [Rival("onnxruntime"), Rival("onnxruntime-int8")]
DENSE, REFERENCE, LIMIT = ("drf_c2d2_densenet51", "binary_densenet28"), "bireal_resnet18", 1.5
ENGINES = {"leanconv": "leanconv, 1-bit", "onnxruntime": "ONNX Runtime, fp32", "onnxruntime-int8": "ONNX Runtime, int8"}
COLOURS = {"leanconv": "#0b6bcb", "onnxruntime": "#c2570c", "onnxruntime-int8": "#1a7f4b"}
BEGIN, END = "<!-- latency: begin (benchmarks/ops_against_latency.py) -->", "<!-- latency: end -->"


@dataclass
class Entry:
    """One network in one engine: the file to load, the pictures to run it on, and its counts."""

    network: str
    engine: str
    file: Path
    pictures: Path
    counts: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.network} {self.engine}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ours(name: str, size: int, folder: Path) -> Entry:
    """One of our networks, compiled and compared with torch. Raises CompileError."""
    from leanconv.bench.subject import from_network
    from leanconv.program import Program

    say(f"compiling {name}")
    inside = folder / name
    inside.mkdir()
    subject = from_network(name, size, 1, inside)
    np.save(inside / "pictures.npy", subject.pictures)
    counts = complexity(Program.load(subject.packed), (size, size))
    return Entry(name, "leanconv", subject.packed, inside / "pictures.npy", counts)


def floats(name: str, size: int, folder: Path) -> list[Entry]:
    """A float network of timm for ONNX Runtime, in fp32 and in int8."""
    import torch

    from leanconv.bench.networks import logits
    from leanconv.bench.quantize import quantize
    from leanconv.networks import from_name, settle
    from leanconv.onnx_export import export_onnx

    say(f"exporting {name}")
    inside = folder / name
    inside.mkdir()
    network = from_name(name)
    settle(network.model, network.example(size, count=8).numpy())
    pictures = network.example(size, count=4).numpy()
    np.save(inside / "pictures.npy", pictures)
    np.save(inside / "twin.npy", logits(network.model, pictures))
    export_onnx(network.model, torch.from_numpy(pictures[:2]), inside / "float.onnx")
    quantize(inside / "float.onnx", inside / "int8.onnx", pictures)
    counts = complexity(network.compile(size, verify=False)[0], (size, size))
    files = {"onnxruntime": inside / "float.onnx", "onnxruntime-int8": inside / "int8.onnx"}
    return [Entry(name, rival.name, files[rival.name], inside / "pictures.npy", counts) for rival in RIVALS]


def measure(size: int, threads: list[int], rounds: int) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    check_installed(RIVALS)
    with tempfile.TemporaryDirectory(prefix="leanconv-ops-") as temporary:
        folder = Path(temporary)
        entries = [ours(name, size, folder) for name in OURS]
        for name in FLOAT:
            entries += floats(name, size, folder)
        runs = [timed(entries, count, rounds) for count in threads]
    return {"size": [size, size], "batch": 1, "rounds": rounds, "machine": describe(), "runs": runs}


def timed(entries: list[Entry], threads: int, rounds: int) -> dict[str, Any]:
    """All networks in turn, each engine with `threads` threads."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="leanconv-ops-") as temporary:
        workers, about, outputs = [], {}, {}
        output = Path(temporary) / "output.npy"
        for entry in entries:
            say(f"starting {entry.name}, {threads} thread(s)")
            worker = Worker(entry.name, threads)
            stack.callback(worker.close)
            where = {"path": str(entry.file), "input": str(entry.pictures)}
            about[entry.engine] = worker.ask(do="load", engine=entry.engine, threads=threads, batch=1, **where)["about"]
            worker.ask(do="run", input=str(entry.pictures), output=str(output))
            outputs[entry.name] = np.load(output)
            if not np.isfinite(outputs[entry.name]).all():
                raise BenchError(f"{entry.name} gave values that are not finite; no time was measured")
            workers.append(worker)
        agreement = {
            name: check(
                RIVALS,
                {rival.name: outputs[f"{name} {rival.name}"] for rival in RIVALS},
                np.load(next(e for e in entries if e.network == name).pictures.with_name("twin.npy")),
            )
            for name in dict.fromkeys(e.network for e in entries if e.engine != "leanconv")
        }
        say(f"timing, {threads} thread(s), {rounds} rounds")
        timings, other_load = interleave(workers, rounds)
    rows = [
        {"network": entry.network, "engine": entry.engine, "bytes": entry.file.stat().st_size}
        | {key: entry.counts[key] for key in ("macs_binary", "macs_real", "ops")}
        | timings[entry.name].to_dict()
        for entry in entries
    ]
    return {
        "threads": threads,
        "rows": rows,
        "dense": dense_cost(rows),
        "agreement": agreement,
        "about": about,
        "other_load": other_load,
    }


def dense_cost(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Time of each dense network / (its binary MACs / the binary MACs a millisecond of the whole reference network).

    >>> row = {"engine": "leanconv", "macs_binary": 100, "ms": 2.0}
    >>> dense_cost([row | {"network": "bireal_resnet18"}, row | {"network": "binary_densenet28", "ms": 3.0}])
    {'binary_densenet28': 1.5}
    """
    by_name = {row["network"]: row for row in rows if row["engine"] == "leanconv"}
    rate = by_name[REFERENCE]["macs_binary"] / by_name[REFERENCE]["ms"]
    return {name: by_name[name]["ms"] * rate / by_name[name]["macs_binary"] for name in DENSE if name in by_name}


def table(result: dict[str, Any]) -> str:
    """A row a network and engine, a column a number of threads; then the cost of the dense networks."""
    runs = result["runs"]
    columns = [thread_text(run["threads"]) for run in runs]
    header = ["network", "engine", "binary MACs", "float or int8 MACs", "OPs", *columns]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    for row in sorted(runs[0]["rows"], key=lambda row: row["ms"]):
        mine = [
            r for run in runs for r in run["rows"] if (r["network"], r["engine"]) == (row["network"], row["engine"])
        ]
        counts = [f"{row[key] / 1e6:,.1f} M" if row[key] else "" for key in ("macs_binary", "macs_real", "ops")]
        times = [f"{r['ms']:.2f} ms" for r in mine]
        lines.append("| " + " | ".join([f"`{row['network']}`", ENGINES[row["engine"]], *counts, *times]) + " |")
    cpu, (height, width) = result["machine"]["cpu"], result["size"]
    note = f"{cpu}, {height}x{width}, batch 1; medians of {result['rounds']} interleaved repeats in one run."
    cost = [
        f"`{name}` " + " and ".join(f"{run['dense'][name]:.2f} ({thread_text(run['threads'])})" for run in runs)
        for name in runs[0]["dense"]
    ]
    dense = (
        f"Time as a multiple of what the binary MACs alone would take at the rate of `{REFERENCE}` as a whole (goal: "
        f"at most {LIMIT}): {', '.join(cost)}."
    )
    return "\n".join([*lines, "", note, dense])


def thread_text(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def plot(result: dict[str, Any], path: Path) -> None:
    """OPs against milliseconds on logarithmic axes, a panel a number of threads."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    runs = result["runs"]
    style = {"svg.hashsalt": "leanconv", "svg.fonttype": "none", "axes.grid": True, "grid.color": "#e3e3df"}
    with matplotlib.rc_context(style):
        figure, panels = plt.subplots(1, len(runs), figsize=(6.4 * len(runs), 5.2), sharey=True, squeeze=False)
        for panel, run in zip(panels[0], runs, strict=True):
            for engine, title in ENGINES.items():
                rows = [row for row in run["rows"] if row["engine"] == engine]
                x, y = [row["ops"] / 1e6 for row in rows], [row["ms"] for row in rows]
                panel.scatter(x, y, color=COLOURS[engine], label=title, zorder=3)
            panel.set(xscale="log", yscale="log", xlabel="OPs (M): MACs + binary MACs / 64")
            panel.set_title(thread_text(run["threads"]))
            panel.set_axisbelow(True)
            panel.margins(x=0.15, y=0.15)
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
        panels[0][0].set_ylabel("milliseconds a picture")
        panels[0][0].legend(loc="upper left", fontsize=8)
        figure.suptitle(result["machine"]["cpu"], fontsize=10)
        figure.tight_layout()
        for panel, run in zip(panels[0], runs, strict=True):
            label(panel, run["rows"])
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "plot.svg"
            figure.savefig(made, metadata={"Date": None})
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, made.read_bytes())
        plt.close(figure)


def label(panel: Any, rows: list[dict[str, Any]]) -> None:
    """The names of the points, each where it covers least of points, of other names and of what is outside."""
    from matplotlib.transforms import Bbox

    points = [panel.transData.transform((row["ops"] / 1e6, row["ms"])) for row in rows]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in points]
    places = [(9, -3, "left"), (-9, -3, "right"), (0, 9, "center"), (0, -15, "center")]
    places += [(9, 9, "left"), (9, -15, "left"), (-9, 9, "right"), (-9, -15, "right")]
    for row in sorted(rows, key=lambda row: -row["ops"]):
        tried = []
        for x, y, side in places:
            text = panel.annotate(
                row["network"],
                (row["ops"] / 1e6, row["ms"]),
                xytext=(x, y),
                textcoords="offset points",
                fontsize=8,
                ha=side,
                color=COLOURS[row["engine"]],
            )
            box = text.get_window_extent()
            inside = Bbox.intersection(box, panel.bbox)
            outside = box.width * box.height - (inside.width * inside.height if inside is not None else 0)
            overlaps = (Bbox.intersection(box, other) for other in taken)
            covered = outside + sum(both.width * both.height for both in overlaps if both is not None)
            tried.append((covered, len(tried), text, box))
        best = min(tried, key=lambda entry: entry[:2])
        for _, number, text, _ in tried:
            if number != best[1]:
                text.remove()
        taken.append(best[3])


def around(path: Path) -> tuple[str, str]:
    """A page before and after the block between the two markers."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} lacks the markers {BEGIN} and {END}")
    return before, after


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "sofar_latency.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "sofar.md")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "ops_against_latency.svg")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    before, after = around(options.page)
    if not options.render and not options.check:
        result = measure(options.size, options.threads, options.rounds)
        write_atomic(options.json, (json.dumps(result, indent=1) + "\n").encode())
    elif not options.json.exists():
        raise SystemExit(f"{options.json} does not exist yet: measure first")
    result = json.loads(options.json.read_text())
    shown = f"![Operations against milliseconds](images/{options.plot.name})"
    new = f"{before}{BEGIN}\n{table(result)}\n\n{shown}\n{END}{after}"
    if options.check:
        if new != options.page.read_text():
            raise SystemExit(f"the table of {options.page} is out of date: {parser.prog} --render")
        return
    write_atomic(options.page, new.encode())
    plot(result, options.plot)
    print(table(result))
    slow = {name: cost for run in result["runs"] for name, cost in run["dense"].items() if cost > LIMIT}
    if slow:
        raise SystemExit(f"dense networks beyond {LIMIT} times their binary work: {slow}")


if __name__ == "__main__":
    main()
