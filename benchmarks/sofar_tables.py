"""Fills the counts of docs/sofar.md from the compiled networks, and draws their fractal units.

    python benchmarks/sofar_tables.py           rewrites the block between the two markers and docs/images/*_unit.svg
    python benchmarks/sofar_tables.py --check   exits with 1 if one of them is out of date

Each table compares a baseline (its first row) with networks of about its cost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from leanconv.cli.info import convs_per_unit, drawing
from leanconv.complexity import complexity
from leanconv.networks import from_name
from leanconv.program import write_atomic

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- counts: begin (benchmarks/sofar_tables.py) -->", "<!-- counts: end -->"
GROUPS = {
    "Residual, 224x224, at the cost of Bi-Real ResNet-18": (
        "bireal_resnet18",
        "rf_c2d2_resnet21",
        "rf_c3d4_resnet21",
        "rf_c3d4_resnet37",
        "rf_c4d8_resnet37",
    ),
    "Residual, 224x224, at the cost of Bi-Real ResNet-34": ("bireal_resnet34", "rf_c4d8_resnet37_w52"),
    "Dense, 224x224": ("binary_densenet51", "binary_densenet28", "drf_c2d2_densenet51"),
    "Residual, 32x32, at the cost of Bi-Real ResNet-20": (
        "bireal_resnet20_cifar",
        "rf_c2d2_resnet16_cifar",
        "rf_c3d4_resnet28_cifar",
    ),
    "Residual, 32x32, at the cost of Bi-Real ResNet-18": (
        "bireal_resnet18_cifar",
        "rf_c2d2_resnet21_cifar",
        "rf_c3d4_resnet21_cifar",
        "rf_c4d8_resnet37_cifar",
    ),
    "Dense, 32x32": ("binary_densenet51_cifar", "binary_densenet28_cifar", "drf_c2d2_densenet51_cifar"),
}
DRAWN = ("rf_c4d8_resnet37", "rf_c2d2_resnet21", "drf_c2d2_densenet51")
HEADER = (
    "network",
    "depth",
    "convolutions a unit",
    "binary MACs",
    "float MACs without the stem",
    "OPs without the stem",
    "against the first",
    "OPs with the stem",
    "memory",
    "packed file",
)


def count(name: str) -> dict[str, Any]:
    network = from_name(name)
    counts = complexity(network.compile(verify=False)[0])
    return counts | {"name": name, "convs_per_unit": convs_per_unit(network.model)}


def row(counts: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """The cells of one network."""
    against = 100 * (counts["ops_without_stem"] / baseline["ops_without_stem"] - 1)
    stem = next(layer for layer in counts["layers"] if layer["name"] == counts["stem"])
    return [
        f"`{counts['name']}`",
        str(counts["depth"]),
        str(counts["convs_per_unit"] or ""),
        millions(counts["macs_binary"]),
        millions(counts["macs_real"] - stem["macs_real"]),
        millions(counts["ops_without_stem"]),
        f"{against:+.1f} %" if counts is not baseline else "",
        millions(counts["ops"]),
        f"{counts['bytes_memory'] / 1e6:.2f} MB",
        f"{counts['bytes_packed'] / 1e6:.2f} MB",
    ]


def millions(number: float) -> str:
    return f"{number / 1e6:,.2f} M"


def tables() -> str:
    parts = []
    for title, names in GROUPS.items():
        found = [count(name) for name in names]
        lines = ["| " + " | ".join(HEADER) + " |", "|---|" + "---:|" * (len(HEADER) - 1)]
        lines += ["| " + " | ".join(row(counts, found[0])) + " |" for counts in found]
        parts.append(f"**{title}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    page, check = ROOT / "docs" / "sofar.md", "--check" in sys.argv[1:]
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} lacks the markers {BEGIN} and {END}")
    made = {page: f"{before}{BEGIN}\n{tables()}\n{END}{after}"}
    made |= {ROOT / "docs" / "images" / f"{name}_unit.svg": drawing(name)[0] for name in DRAWN}
    for path, text in made.items():
        if not check:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, text.encode())
        elif not path.exists() or path.read_text() != text:
            raise SystemExit(f"{path} is out of date: python benchmarks/sofar_tables.py")


if __name__ == "__main__":
    main()
