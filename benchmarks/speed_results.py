"""What results/speed/ holds, a folder a machine, and the ratios of it that docs/speed.md states."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import network

LOUD = 0.1  # other processes' share of the machine from which figures are called provisional


@dataclass
class Measured:
    """What was measured on one machine; empty where nothing was yet."""

    title: str = ""
    peak: dict[str, Any] | None = None
    layers: dict[str, Any] | None = None
    more_layers: list[dict[str, Any]] = field(default_factory=list)  # other numbers of threads, other batches
    network: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Measured:
        def one(name: str) -> Any:
            path = folder / name
            return json.loads(path.read_text()) if path.exists() else None

        more = [json.loads(path.read_text()) for path in sorted(folder.glob("layers_*.json"))]
        found = cls("", one("peak.json"), one("layers.json"), more, one("network.json"))
        return replace(found, title=title(found.parts[0]["machine"]["cpu"])) if found.parts else found

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Every file that there is."""
        return [part for part in (self.peak, self.layers, *self.more_layers, self.network) if part]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Whole networks, an entry a number of threads."""
        return list(self.network["runs"]) if self.network else []

    @property
    def other_load(self) -> float:
        """The most of the machine that other processes used."""
        loads = [part.get("other_load") for part in (self.layers, *self.more_layers, *self.runs) if part]
        return max((load for load in loads if load is not None), default=0.0)

    def run(self, threads: int) -> dict[str, Any] | None:
        """The latencies of whole networks with this number of threads."""
        return next((run for run in self.runs if run["threads"] == threads), None)

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


def title(cpu: str) -> str:
    """A processor's name in short.

    >>> title("Intel(R) Xeon(R) Platinum 8581C CPU @ 2.10GHz"), title("AMD EPYC"), title("Intel(R) Xeon(R) Processor")
    ('Intel Xeon Platinum 8581C', 'AMD EPYC', 'Intel Xeon')
    """
    words = cpu.partition("@")[0].replace("(R)", "").replace("(TM)", "").split()
    return " ".join(word for word in words if word not in ("CPU", "Processor"))


def read_machines(folder: Path) -> list[Measured]:
    """Every machine's results; where two processors have one name, the folders tell them apart."""
    found = {path.name: Measured.read(path) for path in sorted(folder.glob("*")) if path.is_dir()}
    found = {name: m for name, m in found.items() if m.parts}
    titles = Counter(m.title for m in found.values())
    return [replace(m, title=f"{m.title} ({name})") if titles[m.title] > 1 else m for name, m in found.items()]


def quotient(above: dict[str, Any] | None, below: dict[str, Any] | None) -> float | None:
    """How many times longer one row took than the other."""
    return float(above["ms"]) / float(below["ms"]) if above and below else None


def over(m: Measured, kind: str) -> float | None:
    """The best rate of binary arithmetic over that of int8 or fp32, on one thread."""
    best = {"binary": 0.0, kind: 0.0}
    for rate in m.peak["runs"][0]["arithmetic"] if m.peak else []:
        best[rate["kind"]] = max(best.get(rate["kind"], 0.0), float(rate["gmacs"]))
    return best["binary"] / best[kind] if best[kind] else None


def share(m: Measured, worst: bool, isa: str | None = None) -> float | None:
    """Of the measured peak, of all 16 convolutions or of the worst layer among them."""
    if m.layers is None:
        return None
    isa = isa or m.layers["isas"][0]
    rows = [row for row in m.layers["layers"] if row["count"]] if worst else [m.layers["total"]]
    return min(float(row["leanconv"][isa]["share"]) for row in rows)


def convs(m: Measured, rival: str, isa: str | None = None) -> float | None:
    """How many times longer a rival took for the 16 convolutions."""
    if m.layers is None:
        return None
    total = m.layers["total"]
    return quotient(total["rivals"].get(rival), total["leanconv"].get(isa or m.layers["isas"][0]))


def convs_at_peak(m: Measured, rival: str, isa: str | None = None) -> float | None:
    """The same if ours ran at the full peak."""
    ratio, of_peak = convs(m, rival, isa), share(m, False, isa)
    return ratio / of_peak if ratio is not None and of_peak else None


def whole(m: Measured, rival: str) -> float | None:
    """How many times longer a rival took for the whole network."""
    return quotient(m.theirs(rival), m.ours())


def whole_at_limits(m: Measured, rival: str) -> float | None:
    """The same if every operator of ours took the least that its arithmetic and bytes allow."""
    theirs, mine = m.theirs(rival), m.ours()
    if not (m.network and theirs and mine):
        return None
    rows = [p["rows"] for p in m.network["profiles"] if p["real_layers"] == mine["real_layers"] and p["threads"] == 1]
    least = min((float(sum(row["limit_ms"] or 0.0 for row in entries)) for entries in rows), default=0.0)
    return float(theirs["ms"]) / least if least else None


def float_share(m: Measured) -> float | None:
    """How fast the float network runs in our engine, of ONNX Runtime's speed."""
    return quotient(m.theirs("onnxruntime"), m.theirs("leanconv"))


def scaling(m: Measured) -> float | None:
    """How many times longer one thread takes than two."""
    mine = m.ours()
    return quotient(mine, m.ours(2, note=mine["note"])) if mine else None


def batched(m: Measured) -> float | None:
    """The time of a picture in a batch over that of one alone."""
    mine = m.ours()
    many = m.ours(batch=network.BATCH, note=mine["note"]) if mine else None
    ratio = quotient(many, mine)
    return ratio / network.BATCH if ratio is not None else None


def smallest(m: Measured) -> dict[str, Any] | None:
    """The loading of the smallest packed file."""
    found = m.network["loading"] if m.network else []
    return min(found, key=lambda entry: int(entry["bytes"]), default=None)


def smaller(m: Measured) -> float | None:
    """How many times larger the fp32 checkpoint is than the smallest packed file."""
    entry = smallest(m)
    return float(m.network["checkpoint_bytes"]) / float(entry["bytes"]) if m.network and entry else None


def load_ms(m: Measured) -> float | None:
    """What loading the smallest packed file takes."""
    entry = smallest(m)
    return float(entry["ms"]) if entry else None


def busy(m: Measured, value: Callable[[dict[str, Any]], float]) -> float | None:
    """The worst over all numbers of threads."""
    entries = m.network["busy"] if m.network else []
    return max((value(entry) for entry in entries), default=None)
