"""Fills the tables of docs/models.md from results/, recipes/ and the packed files that ship, and from nothing else.

    python benchmarks/model_table.py           rewrites the block between the two markers
    python benchmarks/model_table.py --check   exits with 1 if the block is out of date

src/leanconv/weights/*.lconv    the weights that ship, with their provenance
results/*.csv                   one row a training run (benchmarks/accuracy.py)
results/{latency,bench}_*.json  what `leanconv bench FILE.lconv --json results/latency_NAME.json` wrote
recipes/*/*.yaml                models that a recipe trains, and what their sources report
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanconv.complexity import complexity
from leanconv.program import Program
from leanconv.results import Run, Summary, read, summarise
from leanconv.train.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- models: begin (benchmarks/model_table.py) -->", "<!-- models: end -->"


@dataclass
class Shipped:
    """A packed file and what it says of itself."""

    model: str
    trained_on: str
    top1: float
    seed: int
    bytes: int
    counts: dict[str, Any]

    @staticmethod
    def load(path: Path) -> Shipped:
        program = Program.load(path)
        about = program.provenance
        recipe = about["recipe"]
        return Shipped(
            model=about["model"],
            trained_on=recipe["data"],
            top1=about["top1"],
            seed=recipe.get("seed", 0),
            bytes=path.stat().st_size,
            counts=complexity(program),
        )


@dataclass
class Sources:
    """Everything that the tables are made from."""

    shipped: list[Shipped] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    latencies: list[dict[str, Any]] = field(default_factory=list)
    recipes: dict[str, Recipe] = field(default_factory=dict)  # "cifar10/bireal_resnet20_cifar" -> recipe

    @staticmethod
    def read(root: Path) -> Sources:
        results = root / "results"
        files = [*sorted(results.glob("latency_*.json")), *sorted(results.glob("bench_*.json"))]
        recipes = sorted((root / "recipes").glob("*/*.yaml"))
        return Sources(
            shipped=[Shipped.load(path) for path in sorted((root / "src/leanconv/weights").glob("*.lconv"))],
            runs=read(results) if results.is_dir() else [],
            latencies=[json.loads(path.read_text()) for path in files],
            recipes={f"{path.parent.name}/{path.stem}": load_recipe(path) for path in recipes},
        )

    def data(self, shipped: Shipped) -> str:
        """What a shipped network was trained on: the study that it belongs to, or the name in its data SPEC."""
        group = self.group(shipped)
        if group is not None:
            return group.study
        kind, _, rest = shipped.trained_on.partition(":")
        return kind if not rest else rest.partition(":")[0].lower() if kind == "torchvision" else Path(rest).stem

    def group(self, shipped: Shipped) -> Summary | None:
        """The runs of which the shipped network is one: same model and seed, same top-1."""
        for run in self.runs:
            itself = (run.model, run.seed, run.top1_percent) == (
                shipped.model,
                shipped.seed,
                round(100 * shipped.top1, 2),
            )
            if itself and run.split == "test":
                return next(summary for summary in summarise(self.runs) if summary.group == run.group)
        return None

    def milliseconds(self, shipped: Shipped, machine: str) -> str:
        """One picture on one thread, at the network's own size."""
        for result in self.latencies:
            same = result["model"] == shipped.model and tuple(result["size"]) == tuple(shipped.counts["size"])
            if same and result["threads"] == result["batch"] == 1 and result["machine"]["cpu"] == machine:
                return f"{result['engine_ms']:.3g}"
        return ""

    def machines(self) -> list[str]:
        """Processors on which a network that ships was measured."""
        names = sorted({result["machine"]["cpu"] for result in self.latencies})
        return [name for name in names if any(self.milliseconds(shipped, name) for shipped in self.shipped)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> str:
    """A Markdown table whose first `text` columns hold words and the others numbers."""
    rule = "|" + "---|" * text + "---:|" * (len(header) - text)
    return "\n".join(["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])


def top1(summary: Summary | None) -> str:
    """``91.20 ± 0.15 (3 seeds)``."""
    if summary is None:
        return ""
    deviation = f" ± {summary.deviation:.2f}" if summary.deviation is not None else ""
    return f"{summary.mean:.2f}{deviation} ({len(summary.seeds)} seed{'s' if len(summary.seeds) > 1 else ''})"


def shipped_table(sources: Sources) -> str:
    machines = sources.machines()
    header = ["model", "data", "this file", "its seed", "over seeds", "bytes", "binary MACs", "float MACs", "OPs"]
    rows = []
    for shipped in sources.shipped:
        counts = (shipped.bytes, *(round(shipped.counts[key]) for key in ("macs_binary", "macs_real", "ops")))
        rows.append(
            [
                f"`{shipped.model}`",
                sources.data(shipped),
                f"{100 * shipped.top1:.2f}",
                str(shipped.seed),
                top1(sources.group(shipped)),
                *(f"{count:,}" for count in counts),
                *(sources.milliseconds(shipped, machine) for machine in machines),
            ]
        )
    return table([*header, *(f"ms, {machine}" for machine in machines)], rows, text=2)


def trained_table(summaries: list[Summary]) -> str:
    rows = [
        [s.study, f"`{s.model}`", s.arm, str(s.epochs), top1(s), f"{s.ops:,}" if s.ops is not None else ""]
        for s in summaries
    ]
    return table(["study", "model", "arm", "epochs", "top-1 %", "OPs"], rows, text=3)


def recipe_table(recipes: dict[str, Recipe]) -> str:
    rows = []
    for name, recipe in recipes.items():
        published = recipe.published
        figure = str(published) if published is not None else ""
        source = f"{published.source} ({published.status} by us)" if published is not None else ""
        rows.append([f"`{name}`", f"`{recipe.model}`", source, figure])
    return table(["recipe", "model", "source", "its top-1 %"], rows, text=3)


def tables(sources: Sources) -> str:
    """Weights that ship, other trained networks, networks that have but a recipe."""
    parts = []
    if sources.shipped:
        parts.append("### Weights that ship\n\n" + shipped_table(sources))
    shown = {summary.group for summary in map(sources.group, sources.shipped) if summary is not None}
    others = [s for s in summarise(sources.runs) if s.group not in shown and s.split == "test"]
    if others:
        parts.append("### Other trained networks\n\n" + trained_table(others))
    known = {(run.study, run.model) for run in sources.runs} | {(sources.data(s), s.model) for s in sources.shipped}
    waiting = {
        name: recipe for name, recipe in sources.recipes.items() if (name.partition("/")[0], recipe.model) not in known
    }
    if waiting:
        parts.append("### Recipe only\n\n" + recipe_table(waiting))
    return "\n\n".join(parts) or "Nothing was trained yet."


def filled(page: str, sources: Sources) -> str:
    """docs/models.md with the block renewed."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"docs/models.md lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{tables(sources)}\n{END}{after}"


def main() -> None:
    path = ROOT / "docs" / "models.md"
    old = path.read_text()
    new = filled(old, Sources.read(ROOT))
    if "--check" in sys.argv[1:]:
        if new != old:
            raise SystemExit("the tables of docs/models.md are out of date: python benchmarks/model_table.py")
        return
    path.write_text(new)


if __name__ == "__main__":
    main()
