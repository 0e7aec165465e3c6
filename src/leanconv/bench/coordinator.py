"""Times several engines side by side: short batches in random order, one engine at a time, medians at the end."""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from leanconv.bench.machine import available_cores, busy_seconds

BATCH_SECONDS = 0.06


class Asked(Protocol):
    """A worker, or one of the networks that it holds."""

    @property
    def name(self) -> str: ...

    def ask(self, **command: Any) -> dict[str, Any]: ...


@dataclass
class Timing:
    """What one engine took: the median over its batches, each batch the median of its calls; milliseconds a call."""

    ms: float
    fastest_ms: float
    quartiles_ms: tuple[float, float]
    batches: int
    calls: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "ms": self.ms,
            "fastest_ms": self.fastest_ms,
            "quartiles_ms": list(self.quartiles_ms),
            "batches": self.batches,
            "calls": self.calls,
        }


def summarize(batches: Sequence[Sequence[float]]) -> Timing:
    """The timing of one engine from its batches of milliseconds.

    >>> summarize([[1.0, 2.0, 9.0], [3.0, 3.0, 3.0], [1.0, 1.0, 8.0]]).ms
    2.0
    """
    medians = [statistics.median(batch) for batch in batches]
    low, _, high = statistics.quantiles(medians, n=4) if len(medians) > 1 else [medians[0]] * 3
    return Timing(
        ms=statistics.median(medians),
        fastest_ms=min(min(batch) for batch in batches),
        quartiles_ms=(low, high),
        batches=len(batches),
        calls=sum(map(len, batches)),
    )


def take_turns(
    jobs: Sequence[Callable[[], float]], rounds: int, tick: Callable[[], None] = lambda: None
) -> float | None:
    """Do every job `rounds` times, in a new random order each round; a job returns the CPU seconds that it used.

    Returns which share of the machine other processes used meanwhile (None if unknown).
    """
    order = list(jobs)
    shuffle = random.Random(0).shuffle
    others: list[float] = []
    for _ in range(rounds):
        shuffle(order)
        for job in order:
            busy, wall = busy_seconds(), time.monotonic()
            used = job()
            busy_after, wall = busy_seconds(), time.monotonic() - wall
            if busy is not None and busy_after is not None and wall > 0:
                others.append(max(0.0, (busy_after - busy - used) / (wall * available_cores())))
            tick()
    return statistics.mean(others) if others else None


def interleave(
    workers: Sequence[Asked], rounds: int, tick: Callable[[], None] = lambda: None
) -> tuple[dict[str, Timing], float | None]:
    """Time every worker `rounds` times, in a new random order each round.

    Returns the timings by name, and which share of the machine other processes used meanwhile (None if unknown).
    """
    taken: dict[str, list[list[float]]] = {worker.name: [] for worker in workers}

    def job(worker: Asked) -> float:
        reply = worker.ask(do="time", seconds=BATCH_SECONDS)
        taken[worker.name].append(reply["ms"])
        return float(reply["cpu"])

    other_load = take_turns([functools.partial(job, worker) for worker in workers], rounds, tick)
    return {name: summarize(batches) for name, batches in taken.items()}, other_load
