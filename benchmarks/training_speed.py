"""Pictures a second of the training step: a recipe as `leanconv train` follows it, beside a plain PyTorch loop.

    python benchmarks/training_speed.py cifar10/bireal_resnet20_cifar --json results/training_speed.json
    python benchmarks/training_speed.py --check          is the table in docs/training.md that of the JSON file?

The arms take turns in one run, each in a process of its own; medians of whole steps. Every arm trains the same network
on the same pictures with the same batch size and optimizer:

    eager, fp32       a plain loop: model(x), cross entropy, backward, step; pictures ready in memory
    eager, bf16       the same under bf16 autocast
    leanconv          everything that the recipe says: shuffling, augmentation, normalisation, precision, memory layout,
                      compilation, logging figures

`--profile` also says where the time of the eager bf16 step and of the recipe's step goes, by kind of operator.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("eager fp32", "eager bf16", "leanconv")
BEGIN, END = "<!-- training-speed:begin -->", "<!-- training-speed:end -->"

KINDS = {  # what an operator's name contains -> the row it is counted in; the first that fits
    "convolution_backward": "convolutions, backward",
    "mkldnn_convolution": "convolutions, forward",
    "convolution": "convolutions, forward",
    "native_batch_norm_backward": "batch norm, backward",
    "batch_norm": "batch norm, forward",
    "CompiledFxGraph": "fused elementwise (sign, gradients of the sign, batch norm, additions, losses)",
    "Optimizer": "optimizer",
    "_foreach": "optimizer",
}
OTHER = "elementwise and the rest (sign, its gradient, additions, casts, augmentation)"


def plain_step(recipe: Any, bf16: bool) -> Callable[[], None]:
    """One step of the loop that everybody writes first."""
    import torch
    from torch.nn import functional as F

    from leanconv import models  # noqa: F401

    import timm  # isort: skip

    model = timm.create_model(recipe.model, num_classes=10, **recipe.model_args).train()
    x = torch.randn(recipe.batch_size, *timm.get_pretrained_cfg(recipe.model).input_size)
    y = torch.randint(10, (recipe.batch_size,))
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def recipe_step(recipe: Any, out: Path) -> Callable[[], None]:
    """One step of `leanconv train`, data and all."""
    from leanconv.train import loop

    run = loop.Run(recipe, out, loop.accelerator_for(recipe, None), None)
    run.trained.train()
    batches = iter(run.batches.epoch(0))

    def step() -> None:
        run.step(next(batches))

    return step


def worker(arm: str, recipe_path: str, overrides: list[str], threads: int, profile: bool) -> None:
    """Answers each line on stdin with the seconds of one step; `profile` as the last answer."""
    import torch

    from leanconv.train.recipe import load_recipe

    torch.set_num_threads(threads)
    recipe = load_recipe(recipe_path, overrides)
    with tempfile.TemporaryDirectory() as folder:
        if arm == "leanconv":
            step = recipe_step(recipe, Path(folder))
        else:
            step = plain_step(recipe, bf16=arm == "eager bf16")
        for _ in range(3):
            step()
        print("ready", recipe.batch_size, flush=True)
        for line in sys.stdin:
            if line.strip() == "profile":
                print(json.dumps(profiled(step)), flush=True)
                continue
            started = time.perf_counter()
            step()
            print(time.perf_counter() - started, flush=True)


def profiled(step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds a step by kind of operator."""
    from torch.profiler import ProfilerActivity, profile

    steps = 5
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step()
    sums: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        kind = next((row for part, row in KINDS.items() if part in event.key), OTHER)
        sums[kind] += event.self_cpu_time_total / 1000 / steps
    return dict(sums)


def measure(recipe: str, overrides: list[str], threads: int, rounds: int, profile: bool) -> dict[str, Any]:
    """Runs the arms in turns and returns what goes into the JSON file."""
    from leanconv.bench.machine import describe
    from leanconv.shipped import recipe_path

    path = str(recipe_path(recipe))
    processes: dict[str, Any] = {}
    batch = 0
    for arm in ARMS:
        command = [sys.executable, __file__, path, "--worker", arm, "--threads", str(threads)]
        command += [part for text in overrides for part in ("--set", text)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline().split()
        if not line or line[0] != "ready":
            raise SystemExit(f"the arm {arm!r} did not start")
        batch, processes[arm] = int(line[1]), process

    def ask(arm: str, what: str) -> Any:
        processes[arm].stdin.write(what + "\n")
        processes[arm].stdin.flush()
        return json.loads(processes[arm].stdout.readline())

    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm in ARMS:
            ask(arm, "step")  # the caches and the processor's clock are this arm's own
            seconds[arm].append(ask(arm, "step"))
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    profiles = {arm: ask(arm, "profile") for arm in ARMS[1:]} if profile else {}
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return {
        "recipe": recipe,
        "batch_size": batch,
        "threads": threads,
        "rounds": rounds,
        "pictures_per_second": {arm: round(batch / s, 1) for arm, s in medians.items()},
        "faster_than": {arm: round(s / medians["leanconv"], 3) for arm, s in medians.items() if arm != "leanconv"},
        "profile_ms": profiles,
        "machine": describe(),
    }


def markdown(result: dict[str, Any]) -> str:
    """The table and the profile for the docs."""
    lines = ["| training step | pictures/s | leanconv is faster by |", "|---|---:|---:|"]
    for arm, rate in result["pictures_per_second"].items():
        ratio = result["faster_than"].get(arm)
        lines.append(f"| {arm} | {rate:.0f} | {'' if ratio is None else f'{ratio:.2f}x'} |")
    lines += [
        "",
        f"`{result['recipe']}`, batch {result['batch_size']}, {result['threads']} threads, medians of "
        f"{result['rounds']} interleaved steps, on {result['machine']['cpu']}.",
    ]
    if result["profile_ms"]:
        kinds = sorted({k for p in result["profile_ms"].values() for k in p}, key=lambda k: -_largest(result, k))
        arms = list(result["profile_ms"])
        lines += ["", "| milliseconds of a step | " + " | ".join(arms) + " |", "|---|" + "---:|" * len(arms)]
        for kind in kinds:
            cells = [f"{result['profile_ms'][arm].get(kind, 0):.1f}" for arm in arms]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _largest(result: dict[str, Any], kind: str) -> float:
    return max(profile.get(kind, 0.0) for profile in result["profile_ms"].values())


def fill_docs(result: dict[str, Any], check: bool) -> None:
    """Put the table between the markers of docs/training.md, or complain where it is another."""
    path = ROOT / "docs" / "training.md"
    old = path.read_text()
    before, _, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{path.name} lacks the markers {BEGIN} and {END}")
    new = f"{before}{BEGIN}\n{markdown(result)}\n{END}{after}"
    if check and new != old:
        raise SystemExit("the speed table of docs/training.md is out of date: python benchmarks/training_speed.py")
    if not check:
        path.write_text(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="cifar10/bireal_resnet20_cifar")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "training_speed.json")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.recipe, options.overrides, options.threads, options.profile)
    elif options.check:
        fill_docs(json.loads(options.json.read_text()), check=True)
    else:
        result = measure(options.recipe, options.overrides, options.threads, options.rounds, options.profile)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        print(markdown(result))
        fill_docs(result, check=False)


if __name__ == "__main__":
    main()
