"""What drop-in convolutions cost in whole networks: AW-ResNet-50 and REAF-ResNet-50 beside ResNet-50, in one run.

    python benchmarks/drop_in.py --threads 2 --json results/drop_in.json
    python benchmarks/drop_in.py --device cuda --batch 128 --amp --json results/drop_in_cuda.json

The networks take turns in one process, on random pictures of 224 pixels, channels_last; a figure is the median of a
network's time over that of ResNet-50 in the same round. "inference" is evaluation without gradients; "training" a
forward pass, cross entropy, backward pass and a step of SGD with momentum. AW-ResNet-50 stands there with each way to
compute its convolutions (`impl`), REAF-ResNet-50 with the group convolution of equal cost. On a GPU the peak memory of
a training step is compared as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from leanconv import models  # noqa: F401  (before timm)
from leanconv.bench.machine import describe
from leanconv.nn.aw_functional import IMPLEMENTATIONS
from leanconv.program import write_atomic

import timm  # isort: skip

BASELINE = "resnet50"
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    BASELINE: (BASELINE, {}),
    "aw_resnet50": ("aw_resnet50", {}),
    **{f"aw_resnet50, {impl}": ("aw_resnet50", {"aw_args": {"impl": impl}}) for impl in IMPLEMENTATIONS},
    "reaf_resnet50": ("reaf_resnet50", {}),
    "reaf_resnet50_control": ("reaf_resnet50_control", {}),
}
TASKS = ("inference", "training")
Step = Callable[[], None]


def make_step(network: str, task: str, batch: int, size: int, device: torch.device, amp: bool) -> Step:
    """One run of a network; waits until the device is done."""
    torch.manual_seed(0)
    name, arguments = NETWORKS[network]
    model = timm.create_model(name, **arguments).to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(1000, (batch,), device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp)
    model.train(task == "training")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def infer() -> None:
        with torch.inference_mode(), autocast:
            model(x)

    def train() -> None:
        with autocast:
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    run = infer if task == "inference" else train

    def step() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def peak_memory(step: Step, device: torch.device) -> int | None:
    """Bytes that a step holds at most, weights included; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)


def measure(task: str, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a network."""
    device = torch.device(options.device)
    steps: dict[str, Step] = {}
    memory: dict[str, int | None] = {}
    for network in NETWORKS:  # one after another, so that the peak of each is its own above the weights of all
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        steps[network] = make_step(network, task, batch, options.size, device, options.amp)
        for _ in range(2):
            steps[network]()
        peak = peak_memory(steps[network], device)
        memory[network] = None if peak is None else peak - before
    seconds: dict[str, list[float]] = {network: [] for network in NETWORKS}
    for _ in range(options.rounds):
        for network, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[network].append(time.perf_counter() - start)
    rows = []
    for network, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[BASELINE], strict=True)]
        row = {
            "network": network,
            "task": task,
            "batch": batch,
            "milliseconds": round(1e3 * statistics.median(times), 2),
            "ratio": round(statistics.median(ratios), 3),
        }
        used, base = memory[network], memory[BASELINE]
        if used is not None and base:
            row["memory_ratio"] = round(used / base, 3)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys((row["task"], row["batch"]) for row in rows))
    print(f"{'':28}" + "".join(f"{task + ', batch ' + str(batch):>21}" for task, batch in columns))
    for network in NETWORKS:
        cells = []
        for task, batch in columns:
            row = next(r for r in rows if (r["network"], r["task"], r["batch"]) == (network, task, batch))
            cells.append(f"{row['milliseconds']:.0f} ms {row['ratio']:.2f}x")
        print(f"{network:28}" + "".join(f"{cell:>21}" for cell in cells))
        memory = [r["memory_ratio"] for r in rows if r["network"] == network and "memory_ratio" in r]
        if memory:
            print(f"{'  peak memory':28}" + "".join(f"{f'{m:.2f}x':>21}" for m in memory))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    for task in options.task:
        for batch in options.batch:
            rows += measure(task, batch, options)
    show(rows)
    if options.json:
        cuda = {"gpu": torch.cuda.get_device_name(options.device)} if options.device.startswith("cuda") else {}
        about = {"machine": describe() | cuda, "torch": torch.__version__, "threads": options.threads}
        setting = {"size": options.size, "rounds": options.rounds, "amp": options.amp}
        text = json.dumps({**about, **setting, "rows": rows}, indent=1)
        write_atomic(options.json, f"{text}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
