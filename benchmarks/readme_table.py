"""Fills the figures of README.md from results/, and from nothing else.

    python benchmarks/readme_table.py           rewrites the block between the two markers
    python benchmarks/readme_table.py --check   exits with 1 if the block is out of date

results/speed/*/network.json   what `benchmarks/network.py --json` wrote on each machine
results/bench_*.json           what `leanconv bench ... --json` wrote on others
results/demo.json              summary.json of `leanconv demo`
results/*.csv                  one row a training run: study,model,arm,seed,top1_percent,...
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from leanconv.results import Summary, read, summarise

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- figures: begin (benchmarks/readme_table.py) -->", "<!-- figures: end -->"
LARQ = "Larq Compute Engine"
ORDER = ["torch", "onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8", LARQ]
TITLES = {
    "torch": "PyTorch",
    "onnxruntime": "onnxruntime",
    "openvino": "OpenVINO",
    "onnxruntime-int8": "onnxruntime int8",
    "openvino-int8": "OpenVINO int8",
    LARQ: f"{LARQ}, 1-bit",
}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def milliseconds(ms: float) -> str:
    return f"{ms:.3f} ms" if ms < 1 else f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms"


def latency(results: list[dict[str, Any]]) -> str:
    """A table a machine, one row a measurement: our time, then each rival's with how many times longer it took."""
    by_machine: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for r in results:
        by_machine[machine(r)].append(r)
    note = (
        "Medians of interleaved repeats in one run, batch 1 unless said, and how many times longer a rival took. "
        f"leanconv and {LARQ} (its quicker kernel) run the 1-bit network, with the real-valued layers as the row says "
        "(Larq's in fp32), the others its float twin. Each machine's limits, and where 1-bit loses: "
        "[speed](docs/speed.md)."
    )
    return "\n\n".join([*(latency_on(name, rows) for name, rows in by_machine.items()), note])


def latency_on(machine_name: str, results: list[dict[str, Any]]) -> str:
    rivals = [name for name in ORDER if any(name in r["rivals_ms"] for r in results)]
    rows = []
    for r in results:
        cells = [
            f"{milliseconds(r['rivals_ms'][name])} ({r['ratios'][name]:.1f}x)" if name in r["rivals_ms"] else ""
            for name in rivals
        ]
        threads = "1 thread" if r["threads"] == 1 else f"{r['threads']} threads"
        batch = f", batch {r['batch']}" if r["batch"] != 1 else ""
        title = f"{r['model']}, {r['size'][0]}x{r['size'][1]}, real layers {r['real_layers']}, {threads}{batch}"
        rows.append([title, f"**{milliseconds(r['engine_ms'])}**", *cells])
    return table([machine_name, "leanconv", *(TITLES[name] for name in rivals)], rows)


def networks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What `benchmarks/network.py` measured, as results of `leanconv bench`: int8 real layers first."""
    found = []
    for layers in ("int8", "fp32"):
        for run in result["runs"]:
            alone = [row for row in run["rows"] if row["batch"] == 1 and not row["note"].startswith("AVX2")]
            mine = [row["ms"] for row in alone if row["real_layers"] == layers]
            rivals: dict[str, float] = {}
            for row in alone:
                if row["engine"] in ORDER and row["network"] in (result["twin"], result["model"]):
                    rivals[row["engine"]] = min(row["ms"], rivals.get(row["engine"], row["ms"]))
            about = {"model": result["model"], "size": result["size"], "machine": result["machine"], "batch": 1}
            about |= {"threads": run["threads"], "real_layers": layers, "rivals_ms": rivals}
            for ms in mine:
                found.append(
                    about | {"engine_ms": ms, "ratios": {name: theirs / ms for name, theirs in rivals.items()}}
                )
    return found


def machine(result: dict[str, Any]) -> str:
    flags = set(result["machine"]["flags"])
    best = "AVX2"
    if "avx512f" in flags:
        best = "AVX-512 with VPOPCNTDQ" if "avx512_vpopcntdq" in flags else "AVX-512 without VPOPCNTDQ"
    return f"{result['machine']['cpu']} ({best})"


def demo(summary: dict[str, float]) -> str:
    """The digits demo, float against 1-bit."""
    s = summary
    rows = [
        ["float, PyTorch", f"{100 * s['float_top1']:.2f} %", f"{s['float_bytes']:,}", milliseconds(s["torch_ms"])],
        ["float, onnxruntime", "", "", milliseconds(s["onnxruntime_ms"])],
        [
            "**1-bit, leanconv**",
            f"{100 * s['engine_top1']:.2f} %",
            f"{s['engine_bytes']:,}",
            milliseconds(s["engine_ms"]),
        ],
    ]
    return table([f"`make demo` (digits, {s['seconds']:.0f} s)", "top-1", "bytes", "one picture"], rows)


def accuracy(summaries: list[Summary]) -> str:
    """Mean and deviation over the seeds of each trained network; validation splits are left out."""
    lines = []
    for s in summaries:
        if s.split != "test":
            continue
        deviation = f" ± {s.deviation:.2f}" if s.deviation is not None else ""
        lines.append([f"{s.study}: {s.model} ({s.arm})", f"{s.mean:.2f}{deviation}", str(s.epochs), str(len(s.seeds))])
    return table(["trained network", "top-1 %", "epochs", "seeds"], lines)


def figures(results: Path) -> str:
    """Everything that results/ holds, as Markdown."""
    parts = []
    benches = [
        r for path in sorted(results.glob("speed/*/network.json")) for r in networks(json.loads(path.read_text()))
    ]
    benches += [json.loads(path.read_text()) for path in sorted(results.glob("bench_*.json"))]
    if benches:
        parts.append(latency(benches))
    if (results / "demo.json").exists():
        parts.append(demo(json.loads((results / "demo.json").read_text())))
    summaries = summarise(read(results)) if any(results.glob("*.csv")) else []
    if summaries:
        parts.append(accuracy(summaries))
    return "\n\n".join(parts) or "Nothing was measured yet: results/ is empty."


def filled(readme: str, results: Path) -> str:
    """README.md with the block renewed."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{figures(results)}\n{END}{after}"


def main() -> None:
    path = ROOT / "README.md"
    old = path.read_text()
    new = filled(old, ROOT / "results")
    if "--check" in sys.argv[1:]:
        if new != old:
            raise SystemExit("the figures of README.md are out of date: python benchmarks/readme_table.py")
        return
    path.write_text(new)


if __name__ == "__main__":
    main()
