"""docs/speed.md, the whole page, from results/speed/ and from nothing else.

    python benchmarks/speed_page.py           writes the page
    python benchmarks/speed_page.py --check   exits with 1 if the page is out of date

A folder of results/speed/ is a machine, and holds what of this was measured there:

peak.json        python benchmarks/peak.py --json ...
layers.json      python benchmarks/layers.py --extra --json ...            one thread, batch 1
layers_*.json    the same with --threads 2, --batch 8: columns of their own
network.json     python benchmarks/network.py --busy --json ...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from leanconv.program import write_atomic

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the scripts beside this one, where it runs as a script itself
from benchmarks import layers, network, peak, speed_goals  # noqa: E402
from benchmarks.speed_results import LOUD, Measured, quotient, read_machines  # noqa: E402

MOBILE = "mobilenetv2_100"
READING = (
    "- **Peaks** are those of loops over registers, the best of many bursts (`python benchmarks/peak.py`).",
    "- **Layers:** ours with batch norm, shortcut, sign and packing, inside the network; the rivals' is the bare "
    "convolution, in milliseconds, from chains (`python benchmarks/layers.py`). `-bf16` and `-int8` name the "
    "arithmetic, other rivals run fp32.",
    "- **Whole networks** by `python benchmarks/network.py`. AVX2: held to that instruction set, the rivals by "
    "oneDNN's switch. Larq Compute Engine, where it was measured, runs the 1-bit network as we do: as it comes, and "
    "with the kernel that it offers beside (`use_indirect_bgemm`).",
    "- **Operators** of them on one thread (`leanconv bench NAME --profile` shows them layer by layer); the limit is "
    "the processor's, by the arithmetic or the bytes of each operator.",
)


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


def forms(m: Measured) -> str:
    """Our layers with each number of threads and batch, and below them how many times longer rivals took."""
    results = [result for result in [m.layers, *m.more_layers] if result]
    if len(results) < 2:
        return ""
    header, mine = ["layer", "times"], []
    for result in results:
        threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
        header += [f"{threads}, batch {result['batch']}, ms", "of peak"]
        isa = result["isas"][0]
        rows = [*result["layers"], result["total"]]
        mine.append({row["layer"]: row["leanconv"][isa] for row in rows if row["count"]})
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    first = [row for row in [*results[0]["layers"], results[0]["total"]] if row["count"]]
    for row in first:
        cells = [row["layer"], str(row["count"])]
        for found in mine:
            entry = found.get(row["layer"])
            cells += [f"{entry['ms']:.4f}", f"{entry['share']:.0%}"] if entry else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    for rival in dict.fromkeys(name for result in results for name in result["total"]["rivals"]):
        cells = [f"{rival}, of ours", ""]
        for result in results:
            total = result["total"]
            ratio = quotient(total["rivals"].get(rival), total["leanconv"][result["isas"][0]])
            cells += ["" if ratio is None else f"{ratio:.1f}x", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def narrow(m: Measured) -> str:
    """What the extra layers show of narrow ones, or nothing."""
    if m.layers is None:
        return ""
    isa = m.layers["isas"][0]
    rows = {row["layer"]: row["leanconv"][isa]["share"] for row in m.layers["layers"] if not row["count"]}
    return "; ".join(f"{name}: {value:.0%}" for name, value in rows.items())


def losses(machines: list[Measured]) -> str:
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
    thin = [
        "- **Narrow layers.** Below 64 channels and in 1x1 layers the work around the counting outweighs it, and "
        "channels are padded to words of 32."
    ]
    for m in machines:
        equal += beside_mobile(m)
        thin += [f"Shares of the peak on {m.title}: {extra}." for extra in [narrow(m)] if extra]
    return "\n".join([amx, " ".join(equal), " ".join(thin)])


def beside_mobile(m: Measured) -> list[str]:
    """Sentences on MobileNetV2, held to AVX2 and with all instructions."""
    found = []
    run = m.run(1)
    held = [row for row in run["rows"] if held_to_avx2(row)] if run else []
    mobile, mine = m.theirs("openvino", MOBILE, "AVX2"), min(held, key=lambda row: float(row["ms"]), default=None)
    if mobile and mine:
        found.append(f"On {m.title} held to AVX2, {against(mobile, mine)}.")
    quick = [row for name in ("onnxruntime-int8", "openvino-int8") if (row := m.theirs(name, MOBILE))]
    best, ours_now = min(quick, key=lambda row: float(row["ms"]), default=None), m.ours()
    if best and ours_now:
        found.append(
            f"On {m.title} with all instructions, {against(best, ours_now)}; its file has {best['bytes'] / 1e6:.1f} MB."
        )
    return found


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
    about = m.parts[0]["machine"]
    versions: dict[str, str] = {}
    for result in (m.layers, *m.runs):
        for name, entry in (result or {}).get("about", {}).items():
            versions.setdefault(name.partition("-")[0], entry["version"])
    text = [f"Machine: {about['cpu']}, {about['cores']} cores, {', '.join(about['flags'])}; {about['system']}."]
    if versions:
        text.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    if m.other_load > LOUD:
        text.append(
            f"**Provisional:** other processes used up to {m.other_load:.0%} of the machine while this was measured; "
            "ratios of whole calls, and most of all differences of chains, are not to be relied on."
        )
    if any(part["machine"]["cpu"] != about["cpu"] for part in m.parts):
        text.append("**The tables come from different machines.**")
    return "\n".join(text)


def section(m: Measured) -> str:
    """All tables of one machine."""
    parts = [f"## {m.title}\n", machine(m) + "\n"]
    if m.peak:
        parts += ["### What a core can do\n", peak.markdown(m.peak) + "\n"]
    if m.layers:
        parts += ["### Layer by layer\n", layers.markdown(m.layers) + "\n"]
        parts += [text + "\n" for text in [forms(m)] if text]
    if m.network:
        parts += ["### Whole networks\n", network.markdown(m.network) + "\n", profile(m) + "\n"]
    return "\n".join(parts)


def page(machines: list[Measured]) -> str:
    """docs/speed.md."""
    title = "# Speed\n\n<!-- written by benchmarks/speed_page.py from results/speed/; do not edit -->\n"
    if not machines:
        return f"{title}\nNothing was measured yet.\n"
    reasons = speed_goals.missed(machines)
    parts = [
        title,
        "How fast the engine is, against what the processor can do and against other engines; measured side by side in "
        "one run, threads matched, medians (minima in brackets). `bireal_resnet18` at 224x224 unless said; rivals run "
        "the float network of its shape. Accuracy is another matter: see [models](models.md).\n",
        "## Goals\n",
        speed_goals.table(machines) + "\n",
        *([reasons + "\n"] if reasons else []),
        "## How to read the tables\n",
        "\n".join(READING) + "\n",
        *(section(m) for m in machines),
        "## Where 1-bit loses\n",
        losses(machines) + "\n",
    ]
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "speed")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md")
    options = parser.parse_args(arguments)
    text = page(read_machines(options.results))
    if options.check:
        if not options.page.exists() or options.page.read_text() != text:
            raise SystemExit(f"{options.page} is out of date: python benchmarks/speed_page.py")
        return
    write_atomic(options.page, text.encode())


if __name__ == "__main__":
    main()
