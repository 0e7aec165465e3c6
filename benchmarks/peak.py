"""What a core can do at most: multiply-adds a cycle of binary, int8, bf16 and fp32 arithmetic, and bandwidth.

    python benchmarks/peak.py                          one thread, then as many as there are cores
    python benchmarks/peak.py --json results/speed/MACHINE/peak.json

Each form is a loop over registers (native/kernels/peak_*.cpp); only what the processor has is run. The clock is
measured by a chain of dependent additions between the bursts of each loop; the best of many bursts counts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from leanconv.bench.machine import available_cores, describe
from leanconv.engine import peaks
from leanconv.program import write_atomic


def measure(seconds: float, threads: list[int]) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    runs = [peaks.measure(seconds, count).to_dict() for count in threads]
    return {"machine": describe(), "seconds": seconds, "runs": runs}


def markdown(result: dict[str, Any]) -> str:
    """The two tables.

    >>> fma = {"name": "FMA", "isa": "avx2", "kind": "fp32", "gmacs": 60.0, "macs_per_cycle": 16.0}
    >>> count = {"name": "vpopcntd", "isa": "avx2", "kind": "binary", "gmacs": 600.0, "macs_per_cycle": 160.0}
    >>> l1 = {"level": "L1", "bytes": 16384, "gb_per_s": 400.0}
    >>> run = {"threads": 1, "clock_ghz": 3.75, "arithmetic": [count, fma], "bandwidth": [l1]}
    >>> print(markdown({"machine": {"cpu": "Some CPU"}, "runs": [run]}))
    | Some CPU, 3.75 GHz | kind | MACs/cycle | GMAC/s, 1 thread | over fp32 | over int8 |
    |---|---|---:|---:|---:|---:|
    | vpopcntd | binary | 160.0 | 600 | 10.0x |  |
    | FMA | fp32 | 16.0 | 60 | 1.0x |  |
    <BLANKLINE>
    | read from | buffer, a thread | GB/s, 1 thread |
    |---|---:|---:|
    | L1 | 16 KiB | 400 |
    """
    runs = result["runs"]
    single = runs[0]
    threads = [f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}" for run in runs]
    best = {
        kind: max((row["gmacs"] for row in single["arithmetic"] if row["kind"] == kind), default=0.0)
        for kind in ("fp32", "int8")
    }
    header = [f"{result['machine']['cpu']}, {single['clock_ghz']:.2f} GHz", "kind", "MACs/cycle"]
    header += [*(f"GMAC/s, {text}" for text in threads), "over fp32", "over int8"]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    for i, row in enumerate(single["arithmetic"]):
        rates = [f"{run['arithmetic'][i]['gmacs']:,.0f}" for run in runs]
        over = [f"{row['gmacs'] / best[kind]:.1f}x" if best[kind] else "" for kind in ("fp32", "int8")]
        lines.append(
            "| " + " | ".join([row["name"], row["kind"], f"{row['macs_per_cycle']:.1f}", *rates, *over]) + " |"
        )
    lines += ["", "| read from | buffer, a thread | " + " | ".join(f"GB/s, {text}" for text in threads) + " |"]
    lines.append("|---|---:|" + "---:|" * len(runs))
    for i, row in enumerate(single["bandwidth"]):
        rates = [f"{run['bandwidth'][i]['gb_per_s']:,.0f}" if i < len(run["bandwidth"]) else "" for run in runs]
        lines.append("| " + " | ".join([row["level"], f"{row['bytes'] // 1024:,} KiB", *rates]) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="about how long a run")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads (1 and all cores)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    threads = options.threads or sorted({1, available_cores()})
    result = measure(options.seconds, threads)
    if options.json is not None:
        write_atomic(options.json, (json.dumps(result, indent=1) + "\n").encode())
    print(markdown(result))


if __name__ == "__main__":
    main()
