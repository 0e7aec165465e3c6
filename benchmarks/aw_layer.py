"""What an AW-convolution costs: its implementations beside the plain convolution, layer by layer.

    python benchmarks/aw_layer.py --threads 2 --json results/aw_layer.json
    python benchmarks/aw_layer.py --layers cifar --batches 128 --precision bfloat16
    python benchmarks/aw_layer.py --device cuda --batches 32 128 --precision bfloat16 --json aw_layer_cuda.json

The layers are 3x3 convolutions with padding 1: those of ResNet-50 at 224 pixels and those of ResNet-20 for 32x32
pictures; "64@56" has 64 channels in and out on 56 x 56 maps, "16-32@32/2" 16 in, 32 out, stride 2. channels_last,
float32 or bfloat16 autocast. Each arm is a whole layer, attention included; "forward" is evaluation without gradients,
"train" forward and backward with all gradients. The arms take turns in one process; a figure is the arm's shortest run
over the plain convolution's shortest: on a shared machine the only figure that repeats. "auto" has the name of what it
chose. :func:`leanconv.nn.aw_functional.choose` was written after this table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leanconv.bench.machine import describe
from leanconv.nn import aw_functional
from leanconv.nn.aw_conv import AWConv2d
from leanconv.program import write_atomic


class Layer(NamedTuple):
    """A 3x3 convolution of size x size maps.

    >>> Layer(64, 64, 56).name, Layer(16, 32, 32, 2).name
    ('64@56', '16-32@32/2')
    """

    inputs: int
    outputs: int
    size: int
    stride: int = 1

    @property
    def name(self) -> str:
        channels = str(self.inputs) if self.inputs == self.outputs else f"{self.inputs}-{self.outputs}"
        return f"{channels}@{self.size}" + ("" if self.stride == 1 else f"/{self.stride}")


LAYERS = {
    "resnet50": (
        *(Layer(c, c, size) for c, size in ((64, 56), (128, 28), (256, 14), (512, 7))),
        *(Layer(c, c, size, 2) for c, size in ((128, 56), (256, 28), (512, 14))),
    ),
    "cifar": (Layer(16, 16, 32), Layer(32, 32, 16), Layer(64, 64, 8), Layer(16, 32, 32, 2), Layer(32, 64, 16, 2)),
}
ARMS = tuple(aw_functional.IMPLEMENTATIONS)
MODES = ("forward", "train")


def layers(layer: Layer, device: str) -> dict[str, nn.Module]:
    """The plain convolution and the same with each implementation, equal weights."""
    plain = nn.Conv2d(layer.inputs, layer.outputs, 3, layer.stride, padding=1, bias=False)
    made: dict[str, nn.Module] = {"plain": plain}
    for arm in ARMS:
        made[arm] = AWConv2d(layer.inputs, layer.outputs, 3, layer.stride, padding=1, bias=False, impl=arm)
        made[arm].weight = plain.weight
    return {arm: layer.to(device, memory_format=torch.channels_last) for arm, layer in made.items()}


def step(layer: nn.Module, x: Tensor, mode: str, precision: str) -> Callable[[], Any]:
    """One run of a layer, forward only or with all gradients."""
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def forward() -> Tensor:
        with autocast:
            return layer(x)

    if mode == "forward":
        layer.eval()
        x = x.bfloat16() if precision == "bfloat16" else x
        return torch.no_grad()(forward)
    layer.train()
    x = (x.bfloat16() if precision == "bfloat16" else x).requires_grad_()
    wanted = [x, *layer.parameters()]
    seed = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), wanted, seed)


def shortest(arms: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds of each arm: its shortest run, in rounds in which every arm runs twice and the second run counts.

    On a GPU the second run is ten in a row, from an idle device until it is idle again.
    """
    repeats, finish = (10, torch.cuda.synchronize) if device.startswith("cuda") else (1, lambda: None)
    seconds = dict.fromkeys(arms, float("inf"))
    for _ in range(rounds):
        for arm, run in arms.items():
            run()
            finish()
            started = time.perf_counter()
            for _ in range(repeats):
                run()
            finish()
            seconds[arm] = min(seconds[arm], (time.perf_counter() - started) / repeats)
    return {arm: 1000 * value for arm, value in seconds.items()}


def chosen(layer: AWConv2d, x: Tensor) -> str:
    """What ``impl="auto"`` takes."""
    window = aw_functional.Window(layer.stride, (1, 1), layer.dilation, layer.groups)
    return aw_functional.choose(x, layer.weight, layer.attn(x), window)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each batch, layer and mode."""
    for batch in options.batches:
        for layer in (layer for network in options.layers for layer in LAYERS[network]):
            torch.manual_seed(0)
            made = layers(layer, options.device)
            x = torch.randn(batch, layer.inputs, layer.size, layer.size, device=options.device)
            x = x.contiguous(memory_format=torch.channels_last)
            for mode in options.modes:
                arms = {
                    arm: step(made[arm], x.detach().clone(), mode, options.precision)
                    for arm in ("plain", *options.arms)
                }
                ms = shortest(arms, options.rounds, options.device)
                ratios = {arm: round(ms[arm] / ms["plain"], 2) for arm in options.arms}
                row = {"batch": batch, "layer": layer.name, "mode": mode, "plain_ms": ms["plain"]}
                yield row | {"ratio": ratios, "auto": chosen(made[ARMS[0]], x)}


def markdown(result: dict[str, Any]) -> str:
    """The table, and where it was measured.

    >>> row = {"batch": 1, "layer": "64@56", "mode": "train", "plain_ms": 2.0, "auto": "taps"}
    >>> row["ratio"] = {"per_sample": 1.5, "taps": 1.0}
    >>> machine = {"cpu": "Some CPU"}
    >>> print(markdown({"rows": [row], "threads": 1, "rounds": 3, "precision": "float32", "machine": machine}))
    | batch | layer | mode | plain, ms | per_sample | taps | auto |
    |---:|---|---|---:|---:|---:|---|
    | 1 | 64@56 | train | 2.00 | 1.50 | 1.00 | taps |
    <BLANKLINE>
    Times over the plain convolution's: Some CPU, threads: 1, float32, shortest of 3 interleaved rounds in one run.
    """
    arms = list(result["rows"][0]["ratio"])
    rule = "|---:|---|---|---:|" + "---:|" * len(arms) + "---|"
    lines = [f"| batch | layer | mode | plain, ms | {' | '.join(arms)} | auto |", rule]
    for row in result["rows"]:
        ratios = " | ".join(f"{row['ratio'][arm]:.2f}" for arm in arms)
        lines.append(
            f"| {row['batch']} | {row['layer']} | {row['mode']} | {row['plain_ms']:.2f} | {ratios} | {row['auto']} |"
        )
    where = (
        f"{result['machine'].get('gpu', result['machine']['cpu'])}, threads: {result['threads']}, {result['precision']}"
    )
    note = f"Times over the plain convolution's: {where}, shortest of {result['rounds']} interleaved rounds in one run."
    return "\n".join([*lines, "", note])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", choices=tuple(LAYERS), nargs="+", default=list(LAYERS))
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=list(ARMS))
    parser.add_argument("--modes", choices=MODES, nargs="+", default=list(MODES))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    gpu = {"gpu": torch.cuda.get_device_name(options.device)} if options.device.startswith("cuda") else {}
    result = {
        "machine": describe() | gpu,
        "threads": options.threads,
        "rounds": options.rounds,
        "precision": options.precision,
        "rows": list(measure(options)),
    }
    if options.json is not None:
        write_atomic(options.json, (json.dumps(result, indent=1) + "\n").encode())
    print(markdown(result))


if __name__ == "__main__":
    main()
