"""The goals of docs/speed.md: what each machine reached of them, and why one was missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import network
from benchmarks.speed_results import (
    LOUD,
    Measured,
    batched,
    busy,
    convs,
    convs_at_peak,
    float_share,
    load_ms,
    over,
    scaling,
    share,
    smaller,
    whole,
    whole_at_limits,
)

ATTAINABLE = 0.85  # of a machine's limits: the first goal
OVER_INT8, OVER_FP32 = 5.3, 21  # binary arithmetic on the AMD Zen 4 on which the goals were set


@dataclass(frozen=True)
class Goal:
    """A row of the table: at least (or with `at_most` at most) so much, and what to say where it is missed.

    `limit` is what would be measured if ours took the least time that the machine allows; where the goal is more than
    ATTAINABLE of that, the machine is why it is missed.
    """

    text: str
    goal: float
    stretch: float | None
    unit: str  # "%", "x" or " ms"
    measure: Callable[[Measured], float | None]
    why: str
    at_most: bool = False
    limit: Callable[[Measured], float | None] = lambda m: None

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

    def reached(self, value: float) -> bool:
        return value <= self.goal if self.at_most else value >= self.goal

    def cell(self, value: float | None) -> str:
        """
        >>> goal = Goal("", 4.0, 5.0, "x", lambda m: None, "")
        >>> goal.cell(3.0), goal.cell(4.5), goal.cell(5.0), goal.cell(None)
        ('3.00x, 25 % short', '4.50x, reached', '5.00x, stretch too', 'not measured')
        >>> Goal("", 20.0, 5.0, " ms", lambda m: None, "", at_most=True).cell(25.0)
        '25.0 ms, 25 % too much'
        """
        if value is None:
            return "not measured"
        if not self.reached(value):
            away = abs(value / self.goal - 1)
            return f"{self.written(value)}, {100 * away:.0f} % " + ("too much" if self.at_most else "short")
        sign = -1 if self.at_most else 1
        further = self.stretch is not None and sign * value >= sign * self.stretch
        return f"{self.written(value)}, " + ("stretch too" if further else "reached")


TILE = (
    "behind the counting of a tile comes work that the peak does not have: reading weights and words, scale, shortcut, "
    "sign and packing; with 64 input channels a tile counts only 18 words, so that this weighs most"
)
REST = (
    "the real-valued layers (stem, 1x1 shortcuts, dense layer) take the other part of the time, see the profile below; "
    "int8 real layers are the quickest form of them"
)
GOALS = (
    Goal(
        "16 convolutions, fused: share of the xor/popcount peak", ATTAINABLE, 0.92, "%", lambda m: share(m, False), TILE
    ),
    Goal("the worst layer of them", 0.80, 0.88, "%", lambda m: share(m, True), TILE),
    Goal(
        "16 convolutions against ONNX Runtime int8", 5.0, 5.5, "x", lambda m: convs(m, "onnxruntime-int8"),
        "the peaks allow little more: see binary over int8 in the first table below",
        limit=lambda m: convs_at_peak(m, "onnxruntime-int8"),
    ),
    Goal(
        "16 convolutions against ONNX Runtime fp32", 20.0, 21.0, "x", lambda m: convs(m, "onnxruntime"), TILE,
        limit=lambda m: convs_at_peak(m, "onnxruntime"),
    ),
    Goal(
        "whole network against ONNX Runtime int8", 4.2, 4.6, "x", lambda m: whole(m, "onnxruntime-int8"), REST,
        limit=lambda m: whole_at_limits(m, "onnxruntime-int8"),
    ),
    Goal(
        "whole network against OpenVINO int8", 3.7, 4.0, "x", lambda m: whole(m, "openvino-int8"), REST,
        limit=lambda m: whole_at_limits(m, "openvino-int8"),
    ),
    Goal(
        "whole network against ONNX Runtime fp32", 14.0, 15.5, "x", lambda m: whole(m, "onnxruntime"), REST,
        limit=lambda m: whole_at_limits(m, "onnxruntime"),
    ),
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
        limit=lambda m: convs_at_peak(m, "onnxruntime-int8", "avx2"),
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


def table(machines: list[Measured]) -> str:
    """A row a goal, a column a machine."""
    titles = [f"{m.title} (provisional)" if m.other_load > LOUD else m.title for m in machines]
    lines = ["| goal | at least | stretch | " + " | ".join(f"measured, {title}" for title in titles) + " |"]
    lines.append("|---|---:|---:|" + "---|" * len(machines))
    for goal in GOALS:
        word = "at most " if goal.at_most else ""
        cells = [goal.text, word + goal.written(goal.goal), goal.written(goal.stretch)]
        lines.append("| " + " | ".join([*cells, *(goal.cell(goal.measure(m)) for m in machines)]) + " |")
    return "\n".join(lines)


def missed(machines: list[Measured]) -> str:
    """Why goals were missed, machine by machine; empty where none was."""
    parts = []
    for m in machines:
        reasons: dict[str, list[str]] = {}
        for goal in GOALS:
            value, limit = goal.measure(m), goal.limit(m)
            if value is None or goal.reached(value):
                continue
            if limit is not None and not goal.reached(ATTAINABLE * limit):
                named = f"**{goal.text}** ({goal.written(value)}, at the limit {goal.written(limit)})"
                reasons.setdefault(out_of_reach(m), []).append(named)
            else:
                reasons.setdefault(goal.why, []).append(f"**{goal.text}** ({goal.written(value)})")
        if reasons:
            found = [f"- {', '.join(texts)}: {why}." for why, texts in reasons.items()]
            parts.append("\n".join([f"Where a goal was missed on {m.title}:", "", *found]))
    return "\n\n".join(parts)


def out_of_reach(m: Measured) -> str:
    """What to say of goals that hardly any kernel could reach on this machine."""
    text = (
        f"would take more than {100 * ATTAINABLE:.0f} % of what this machine allows (the second figure is with all our "
        "layers at their limit)"
    )
    int8, fp32 = over(m, "int8"), over(m, "fp32")
    if int8 is None or fp32 is None:
        return text
    text += (
        f". Binary arithmetic peaks at {int8:.1f} times the multiply-adds of int8 here and {fp32:.0f} times those of "
        f"fp32; on the AMD Zen 4 on which the goals were set, at {OVER_INT8} and {OVER_FP32} times"
    )
    if "Intel" in m.title:
        text += (
            ". An Intel core has two ports for vectors of 512 bits: both multiply, in int8 as in fp32, while xor, "
            "popcount (on one port only) and addition share them; an AMD core has four, and two of them multiply"
        )
    return text
