"""What an AW-convolution costs: its implementations beside the plain convolution, layer by layer.

    python benchmarks/aw_layer.py --threads 2 --json results/aw_layer.json

The layers are the 3x3 convolutions of ResNet-50 at 224 pixels, C channels on H x H maps, fp32, channels_last. Each arm
is a whole layer, attention included; "forward" is evaluation without gradients, "train" forward and backward with all
gradients. The arms take turns in one process; a figure is the arm's median over the plain convolution's. "auto" has the
name of what it chose. :func:`leanconv.nn.aw_functional.choose` was written after this table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.bench.machine import describe
from leanconv.nn import aw_functional
from leanconv.nn.aw_conv import AWConv2d
from leanconv.program import write_atomic

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
ARMS = ("per_sample", "taps")
MODES = ("forward", "train")


def layers(channels: int) -> dict[str, nn.Module]:
    """The plain convolution and the same with each implementation, equal weights."""
    plain = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    made: dict[str, nn.Module] = {"plain": plain}
    for arm in ARMS:
        made[arm] = AWConv2d(channels, channels, 3, padding=1, bias=False, impl=arm)
        made[arm].weight = plain.weight
    return {arm: layer.to(memory_format=torch.channels_last) for arm, layer in made.items()}


def step(layer: nn.Module, x: Tensor, mode: str) -> Callable[[], Any]:
    """One run of a layer, forward only or with all gradients."""
    if mode == "forward":
        layer.eval()
        return torch.no_grad()(lambda: layer(x))
    layer.train()
    wanted = [x.requires_grad_(), *layer.parameters()]
    seed = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), wanted, seed)


def medians(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each arm: medians over rounds in which every arm runs twice and the second run counts."""
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, run in arms.items():
            run()
            started = time.perf_counter()
            run()
            seconds[arm].append(time.perf_counter() - started)
    return {arm: 1000 * statistics.median(values) for arm, values in seconds.items()}


def chosen(layer: AWConv2d, x: Tensor) -> str:
    """What ``impl="auto"`` takes."""
    window = aw_functional.Window(layer.stride, (1, 1), layer.dilation, layer.groups)
    return aw_functional.choose(x, layer.weight, layer.attn(x), window)


def measure(batches: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each batch, layer and mode."""
    for batch in batches:
        for channels, size in LAYERS:
            torch.manual_seed(0)
            made = layers(channels)
            x = torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
            for mode in MODES:
                ms = medians({arm: step(layer, x.detach().clone(), mode) for arm, layer in made.items()}, rounds)
                ratios = {arm: round(ms[arm] / ms["plain"], 2) for arm in ARMS}
                row = {"batch": batch, "channels": channels, "size": size, "mode": mode, "plain_ms": ms["plain"]}
                yield row | {"ratio": ratios, "auto": chosen(made["taps"], x)}


def markdown(result: dict[str, Any]) -> str:
    """The table, and where it was measured.

    >>> row = {"batch": 1, "channels": 64, "size": 56, "mode": "train", "plain_ms": 2.0, "auto": "taps"}
    >>> row["ratio"] = {"per_sample": 1.5, "taps": 1.0}
    >>> machine = {"cpu": "Some CPU"}
    >>> print(markdown({"rows": [row], "threads": 1, "rounds": 3, "machine": machine}))
    | batch | layer | mode | plain, ms | per_sample | taps | auto |
    |---:|---|---|---:|---:|---:|---|
    | 1 | 64@56 | train | 2.00 | 1.50 | 1.00 | taps |
    <BLANKLINE>
    Times over the plain convolution's: Some CPU, threads: 1, medians of 3 interleaved rounds in one run.
    """
    lines = [f"| batch | layer | mode | plain, ms | {' | '.join(ARMS)} | auto |", "|---:|---|---|---:|---:|---:|---|"]
    for row in result["rows"]:
        ratios = " | ".join(f"{row['ratio'][arm]:.2f}" for arm in ARMS)
        name = f"{row['channels']}@{row['size']}"
        lines.append(f"| {row['batch']} | {name} | {row['mode']} | {row['plain_ms']:.2f} | {ratios} | {row['auto']} |")
    where = f"{result['machine']['cpu']}, threads: {result['threads']}"
    note = f"Times over the plain convolution's: {where}, medians of {result['rounds']} interleaved rounds in one run."
    return "\n".join([*lines, "", note])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    result = {
        "machine": describe(),
        "threads": options.threads,
        "rounds": options.rounds,
        "rows": list(measure(options.batches, options.rounds)),
    }
    if options.json is not None:
        write_atomic(options.json, (json.dumps(result, indent=1) + "\n").encode())
    print(markdown(result))


if __name__ == "__main__":
    main()
