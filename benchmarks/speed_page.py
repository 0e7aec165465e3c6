"""docs/speed.md, the whole page, from results/speed_*.json and from nothing else.

    python benchmarks/speed_page.py           writes the page
    python benchmarks/speed_page.py --check   exits with 1 if the page is out of date

results/speed_peak.json        python benchmarks/peak.py --json ...
results/speed_layers.json      python benchmarks/layers.py --extra --json ...            one thread, batch 1
results/speed_layers_*.json    the same with --threads 2, --batch 8: a row each
results/speed_network.json     python benchmarks/network.py --busy --json ...
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanconv.program import write_atomic

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the scripts beside this one, where it runs as a script itself
from benchmarks import layers, network, peak  # noqa: E402

MOBILE = "mobilenetv2_100"
LOUD = 0.1  # other processes' share of the machine from which figures are called provisional


@dataclass
class Measured:
    """What results/ holds; empty where nothing was measured yet."""

    peak: dict[str, Any] | None = None
    layers: dict[str, Any] | None = None
    more_layers: list[dict[str, Any]] = field(default_factory=list)
    network: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Measured:
        def one(name: str) -> Any:
            path = folder / name
            return json.loads(path.read_text()) if path.exists() else None

        more = [json.loads(path.read_text()) for path in sorted(folder.glob("speed_layers_*.json"))]
        return cls(one("speed_peak.json"), one("speed_layers.json"), more, one("speed_network.json"))

    def run(self, threads: int) -> dict[str, Any] | None:
        """The latencies of whole networks with this number of threads."""
        runs = self.network["runs"] if self.network else []
        return next((run for run in runs if run["threads"] == threads), None)

    def ours(self, threads: int = 1, batch: int = 1, note: str | None = None) -> dict[str, Any] | None:
        """Our row of a run: with `note` that packed file's, else the quickest."""
        run = self.run(threads)
        rows = [row for row in run["rows"] if network.ours_at(row, batch)] if run else []
        rows = [row for row in rows if note is None or row["note"] == note]
        return min(rows, key=lambda row: float(row["ms"]), default=None)

    def theirs(self, engine: str, net: str | None = None, note: str = "", threads: int = 1) -> dict[str, Any] | None:
        """A float network's row; by default the twin's."""
        run = self.run(threads)
        if run is None or self.network is None:
            return None
        wanted = (net or self.network["twin"], engine, note)
        return next((row for row in run["rows"] if (row["network"], row["engine"], row["note"]) == wanted), None)


def quotient(above: dict[str, Any] | None, below: dict[str, Any] | None) -> float | None:
    """How many times longer one row took than the other."""
    return float(above["ms"]) / float(below["ms"]) if above and below else None


def share(m: Measured, worst: bool) -> float | None:
    """Of the measured peak, of all 16 convolutions or of the worst layer among them."""
    if m.layers is None:
        return None
    isa = m.layers["isas"][0]
    rows = [row for row in m.layers["layers"] if row["count"]] if worst else [m.layers["total"]]
    return min(float(row["leanconv"][isa]["share"]) for row in rows)


def convs(m: Measured, rival: str, isa: str | None = None) -> float | None:
    """How many times longer a rival took for the 16 convolutions."""
    if m.layers is None:
        return None
    total = m.layers["total"]
    return quotient(total["rivals"].get(rival), total["leanconv"].get(isa or m.layers["isas"][0]))


def whole(m: Measured, rival: str) -> float | None:
    return quotient(m.theirs(rival), m.ours())


def float_share(m: Measured) -> float | None:
    """How fast the float network runs in our engine, of ONNX Runtime's speed."""
    return quotient(m.theirs("onnxruntime"), m.theirs("leanconv"))


def scaling(m: Measured) -> float | None:
    mine = m.ours()
    return quotient(mine, m.ours(2, note=mine["note"])) if mine else None


def batched(m: Measured) -> float | None:
    mine = m.ours()
    many = m.ours(batch=network.BATCH, note=mine["note"]) if mine else None
    ratio = quotient(many, mine)
    return ratio / network.BATCH if ratio is not None else None


def smallest(m: Measured) -> dict[str, Any] | None:
    """The loading of the smallest packed file."""
    found = m.network["loading"] if m.network else []
    return min(found, key=lambda entry: int(entry["bytes"]), default=None)


def smaller(m: Measured) -> float | None:
    entry = smallest(m)
    return float(m.network["checkpoint_bytes"]) / float(entry["bytes"]) if m.network and entry else None


def load_ms(m: Measured) -> float | None:
    entry = smallest(m)
    return float(entry["ms"]) if entry else None


def busy(m: Measured, value: Callable[[dict[str, Any]], float]) -> float | None:
    """The worst over all numbers of threads."""
    entries = m.network["busy"] if m.network else []
    return max((value(entry) for entry in entries), default=None)


@dataclass(frozen=True)
class Goal:
    """A row of the table: at least (or with `at_most` at most) so much, and what to say where it is missed."""

    text: str
    goal: float
    stretch: float | None
    unit: str  # "%", "x" or " ms"
    measure: Callable[[Measured], float | None]
    why: str
    at_most: bool = False

    def written(self, value: float | None) -> str:
        """
        >>> Goal("", 0.85, None, "%", lambda m: None, "").written(0.857)
        '86 %'
        >>> Goal("", 5.0, None, "x", lambda m: None, "").written(5.0)
        '5.00x'
        """
        if value is None:
            return ""
        return f"{100 * value:.0f} %" if self.unit == "%" else f"{value:.{2 if value < 10 else 1}f}{self.unit}"

    def reached(self, value: float) -> str:
        """
        >>> goal = Goal("", 4.0, 5.0, "x", lambda m: None, "")
        >>> goal.reached(3.0), goal.reached(4.5), goal.reached(5.0)
        ('no: 25 % short', 'yes', 'yes, stretch too')
        >>> Goal("", 20.0, 5.0, " ms", lambda m: None, "", at_most=True).reached(25.0)
        'no: 25 % too much'
        """
        sign = -1 if self.at_most else 1
        if sign * value < sign * self.goal:
            away = abs(value / self.goal - 1)
            return f"no: {100 * away:.0f} % " + ("too much" if self.at_most else "short")
        return "yes, stretch too" if self.stretch is not None and sign * value >= sign * self.stretch else "yes"


TILE = (
    "behind the counting of a tile comes work that the peak does not have: reading weights and words, scale, shortcut, "
    "sign and packing; with 64 input channels a tile counts only 18 words, so that this weighs most"
)
REST = (
    "the real-valued layers (stem, 1x1 shortcuts, dense layer) take the other part of the time, see the profile below; "
    "int8 real layers are the quickest form of them"
)
GOALS = (
    Goal("16 convolutions, fused: share of the xor/popcount peak", 0.85, 0.92, "%", lambda m: share(m, False), TILE),
    Goal("the worst layer of them", 0.80, 0.88, "%", lambda m: share(m, True), TILE),
    Goal(
        "16 convolutions against ONNX Runtime int8", 5.0, 5.5, "x", lambda m: convs(m, "onnxruntime-int8"),
        "the peaks allow little more: see binary over int8 in the first table below",
    ),
    Goal("16 convolutions against ONNX Runtime fp32", 20.0, 21.0, "x", lambda m: convs(m, "onnxruntime"), TILE),
    Goal("whole network against ONNX Runtime int8", 4.2, 4.6, "x", lambda m: whole(m, "onnxruntime-int8"), REST),
    Goal("whole network against OpenVINO int8", 3.7, 4.0, "x", lambda m: whole(m, "openvino-int8"), REST),
    Goal("whole network against ONNX Runtime fp32", 14.0, 15.5, "x", lambda m: whole(m, "onnxruntime"), REST),
    Goal(
        "the float network in fp32: share of ONNX Runtime's speed", 0.60, None, "%", float_share,
        "real-valued convolutions are computed directly, and what they need beside the multiply-adds is less hidden "
        "than in an engine made for them",
    ),
    Goal(
        "two threads against one", 1.9, 1.95, "x", scaling,
        "the threads meet after every layer, and layers of a few microseconds are too small to be shared",
    ),
    Goal(
        "held to AVX2: 16 convolutions against ONNX Runtime int8 (which uses VNNI)", 1.8, 2.4, "x",
        lambda m: convs(m, "onnxruntime-int8", "avx2"),
        "without VPOPCNTDQ ones are counted by table look-ups and adders, at a third of the rate or less, while the "
        "rival keeps instructions that a processor with AVX2 alone would not have",
    ),
    Goal(
        "packed file against the fp32 checkpoint", 16.0, 22.0, "x", smaller,
        "in fp32 the dense layer and the 1x1 shortcuts are two thirds of the packed bytes; in int8, a quarter of that",
    ),
    Goal(
        "loading the packed file", 20.0, 5.0, " ms", load_ms,
        "the file is read, its SHA-256 sums are checked and the weights are repacked for the instruction set",
        at_most=True,
    ),
    Goal(
        "every core busy: median call against quiet", 4.0, None, "x",
        lambda m: busy(m, lambda e: float(e["busy"]["median_ms"]) / float(e["quiet"]["median_ms"])),
        "the system shares the cores between the processes: half of a core at best, and a call waits while another "
        "process has its slice",
        at_most=True,
    ),
    Goal(
        "every core busy: 95th percentile", 20.0, None, " ms", lambda m: busy(m, lambda e: float(e["busy"]["p95_ms"])),
        "slices of the scheduler are milliseconds long, and a call that is interrupted waits for at least one",
        at_most=True,
    ),
    Goal(
        f"an image in a batch of {network.BATCH} against batch 1", 1.05, None, "x", batched,
        "pictures of a batch run one after another with the same code; more pictures displace each other in the caches",
        at_most=True,
    ),
)  # fmt: skip


def goals(m: Measured) -> str:
    """The table of goals, and why a goal was missed."""
    lines = ["| goal | at least | stretch | measured | reached |", "|---|---:|---:|---:|---|"]
    reasons: dict[str, list[str]] = {}
    for goal in GOALS:
        value = goal.measure(m)
        word = "at most " if goal.at_most else ""
        verdict = "not measured" if value is None else goal.reached(value)
        cells = [goal.text, word + goal.written(goal.goal), goal.written(goal.stretch), goal.written(value), verdict]
        lines.append("| " + " | ".join(cells) + " |")
        if value is not None and verdict.startswith("no"):
            reasons.setdefault(goal.why, []).append(f"**{goal.text}** ({goal.written(value)})")
    missed = [f"- {', '.join(texts)}: {why}." for why, texts in reasons.items()]
    return "\n".join(lines + (["", "Where a goal was missed:", "", *missed] if missed else []))


def profile(m: Measured) -> str:
    """Time and limit of each kind of operator, for each packed file."""
    parts = []
    for entry in m.network["profiles"] if m.network else []:
        kinds: dict[str, list[float]] = {}
        for row in entry["rows"]:
            name = row["name"] if row["kind"] == "conv" and "downsample" not in row["name"] else row["kind"]
            sums = kinds.setdefault(name, [0.0, 0.0])
            sums[0] += row["ms"]
            sums[1] += row["limit_ms"] or 0.0
        total = sum(ms for ms, _ in kinds.values())
        header = f"operators of {m.network['model'] if m.network else ''}, {entry['real_layers']} real layers"
        lines = [f"| {header} | ms | share of time | limit, ms | of limit |", "|---|---:|---:|---:|---:|"]
        for name, (ms, limit) in sorted(kinds.items(), key=lambda item: -item[1][0]):
            lines.append(f"| {name} | {ms:.3f} | {ms / total:.0%} | {limit:.3f} | {limit / ms:.0%} |")
        limits = sum(limit for _, limit in kinds.values())
        lines.append(f"| all | {total:.3f} | | {limits:.3f} | {limits / total:.0%} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def sums(m: Measured) -> str:
    """The 16 convolutions together, a row a number of threads and batch."""
    results = [result for result in [m.layers, *m.more_layers] if result]
    if len(results) < 2:
        return ""
    rivals = list(dict.fromkeys(name for result in results for name in result["total"]["rivals"]))
    lines = ["| all 16 convolutions | ours, ms | of peak | " + " | ".join(rivals) + " |"]
    lines.append("|---|" + "---:|" * (2 + len(rivals)))
    for result in results:
        total = result["total"]
        mine = total["leanconv"][result["isas"][0]]
        ratios = [quotient(total["rivals"].get(name), mine) for name in rivals]
        cells = [f"{result['threads']} thread(s), batch {result['batch']}", f"{mine['ms']:.3f}", f"{mine['share']:.0%}"]
        lines.append("| " + " | ".join([*cells, *("" if r is None else f"{r:.1f}x" for r in ratios)]) + " |")
    return "\n".join(lines)


def narrow(m: Measured) -> str:
    """What the extra layers show of narrow ones, or nothing."""
    if m.layers is None:
        return ""
    isa = m.layers["isas"][0]
    rows = {row["layer"]: row["leanconv"][isa]["share"] for row in m.layers["layers"] if not row["count"]}
    return "; ".join(f"{name}: {value:.0%}" for name, value in rows.items())


def losses(m: Measured) -> str:
    """Where 1-bit arithmetic is the wrong choice."""
    amx = (
        "- **Intel server processors with AMX** (from Sapphire Rapids on). By arithmetic, not measured here: AMX does "
        "1024 int8 multiply-adds a cycle and core; xor, popcount and addition do 341 there (three instructions for 512 "
        "bits, on two ports). int8 is three times as fast, and more accurate."
    )
    equal = [
        "- **Equal accuracy.** MobileNetV2 reaches 72.0 % top-1 on ImageNet by its authors' figure (arXiv 1801.04381), "
        "a Bi-Real ResNet-18 56.4 % (arXiv 1808.00278)."
    ]
    run = m.run(1)
    held = [row for row in run["rows"] if held_to_avx2(row)] if run else []
    mobile, mine = m.theirs("openvino", MOBILE, "AVX2"), min(held, key=lambda row: float(row["ms"]), default=None)
    if mobile and mine:
        equal.append(f"Held to AVX2, {against(mobile, mine)}.")
    quick = [row for name in ("onnxruntime-int8", "openvino-int8") if (row := m.theirs(name, MOBILE))]
    best, ours_now = min(quick, key=lambda row: float(row["ms"]), default=None), m.ours()
    if best and ours_now:
        equal.append(f"With all instructions, {against(best, ours_now)}; its file has {best['bytes'] / 1e6:.1f} MB.")
    extra = narrow(m)
    thin = (
        "- **Narrow layers.** Below 64 channels and in 1x1 layers the work around the counting outweighs it, and "
        "channels are padded to words of 32." + (f" Shares of the peak: {extra}." if extra else "")
    )
    return "\n".join([amx, " ".join(equal), thin])


def held_to_avx2(row: dict[str, Any]) -> bool:
    return row["engine"] == "leanconv" and row["batch"] == 1 and str(row["note"]).startswith("AVX2")


def against(mobile: dict[str, Any], mine: dict[str, Any]) -> str:
    """
    >>> against({"engine": "openvino", "ms": 5.0}, {"network": "bireal_resnet18", "ms": 10.0})
    'MobileNetV2 takes 5.00 ms (openvino), `bireal_resnet18` 10.00 ms, 2.0 times as long'
    """
    ratio = mine["ms"] / mobile["ms"]
    words = f"{ratio:.1f} times as long" if ratio > 1 else f"{1 / ratio:.1f} times as fast"
    times = f"{mobile['ms']:.2f} ms ({mobile['engine']}), `{mine['network']}` {mine['ms']:.2f} ms"
    return f"MobileNetV2 takes {times}, {words}"


def machine(m: Measured) -> str:
    """Machine, versions, and whether it was quiet."""
    results = [r for r in (m.peak, m.layers, *m.more_layers, m.network) if r]
    about = results[0]["machine"]
    versions: dict[str, str] = {}
    for result in (m.layers, *((m.network or {}).get("runs", []))):
        for name, entry in (result or {}).get("about", {}).items():
            versions.setdefault(name.partition("-")[0], entry["version"])
    loads = [load for r in (m.layers, *m.more_layers, *((m.network or {}).get("runs", []))) if r
             for load in [r.get("other_load")] if load is not None]  # fmt: skip
    text = [
        f"Machine: {about['cpu']}, {about['cores']} cores, {', '.join(about['flags'])}; {about['system']}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]
    if loads and max(loads) > LOUD:
        text.append(
            f"**Provisional:** other processes used up to {max(loads):.0%} of the machine while this was measured; "
            "ratios of whole calls, and most of all differences of chains, are not to be relied on."
        )
    if any(r["machine"]["cpu"] != about["cpu"] for r in results):
        text.append("**The tables come from different machines.**")
    return "\n".join(text)


def page(m: Measured) -> str:
    """docs/speed.md."""
    title = "# Speed\n\n<!-- written by benchmarks/speed_page.py from results/speed_*.json; do not edit -->\n"
    if not (m.peak or m.layers or m.network):
        return f"{title}\nNothing was measured yet.\n"
    parts = [
        title,
        "How fast the engine is, against what the processor can do and against other engines; measured side by side in "
        "one run, threads matched, medians (minima in brackets). `bireal_resnet18` at 224x224 unless said; rivals run "
        "the float network of its shape. Accuracy is another matter: see [models](models.md).\n",
        machine(m) + "\n",
        "## Goals\n",
        goals(m) + "\n",
    ]
    if m.peak:
        parts += [
            "## What a core can do\n",
            "Loops over registers, the best of many bursts (`python benchmarks/peak.py`).\n",
            peak.markdown(m.peak) + "\n",
        ]
    if m.layers:
        parts += [
            "## Layer by layer\n",
            "Ours with batch norm, shortcut, sign and packing, inside the network; the rivals' is the bare "
            "convolution, in milliseconds, from chains (`python benchmarks/layers.py`). `-bf16` and `-int8` name the "
            "arithmetic, other rivals run fp32.\n",
            layers.markdown(m.layers) + "\n",
            *([sums(m) + "\n"] if sums(m) else []),
        ]
    if m.network:
        parts += [
            "## Whole networks\n",
            "`python benchmarks/network.py`. AVX2: held to that instruction set, the rivals by oneDNN's switch.\n",
            network.markdown(m.network) + "\n",
            "Where our time goes, on one thread (`leanconv bench NAME --profile` shows it layer by layer); the limit "
            "is the processor's, by the arithmetic or the bytes of each operator:\n",
            profile(m) + "\n",
        ]
    return "\n".join([*parts, "## Where 1-bit loses\n", losses(m) + "\n"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md")
    options = parser.parse_args(arguments)
    text = page(Measured.read(options.results))
    if options.check:
        if not options.page.exists() or options.page.read_text() != text:
            raise SystemExit(f"{options.page} is out of date: python benchmarks/speed_page.py")
        return
    write_atomic(options.page, text.encode())


if __name__ == "__main__":
    main()
