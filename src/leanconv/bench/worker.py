"""One engine in a process of its own: reads commands, one JSON object a line, and answers the same way.

{"do": "load", "engine": ..., "path": ..., "threads": ..., ...}   -> {"about": {...}}
{"do": "run", "input": "x.npy", "output": "y.npy"}                -> {}            all pictures, one after another
{"do": "time", "seconds": 0.06}                                   -> {"ms": [...], "cpu": seconds}
{"do": "time", "calls": 1000}                                     -> the same, so many calls
{"do": "profile", "seconds": 0.06}                                -> {"profiles": [[row, ...], ...], "cpu": seconds}
{"do": "peaks", "seconds": 0.2, "threads": 1}                     -> {"peaks": {...}, "cpu": seconds}

A worker may hold several networks: "key" says which one a command is about. Only leanconv's engine has profiles.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanconv.bench.engines import Engine, load


def timed_batch(call: Callable[[], object], seconds: float, least: int = 3) -> list[float]:
    """Milliseconds of each call after one that is not counted: at least `least` calls, until `seconds` have gone."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


@dataclass
class Loaded:
    """A network with the pictures that it is timed on."""

    engine: Engine
    prepared: Any
    batch: int


def obey(command: dict[str, Any], loaded: dict[str, Loaded]) -> dict[str, Any]:
    """The answer to one command."""
    key, what = command.get("key", ""), command["do"]
    started = time.process_time()
    if what == "peaks":
        from leanconv.engine import peaks

        found = peaks.measure(command["seconds"], command["threads"]).to_dict()
        return {"peaks": found, "cpu": time.process_time() - started}
    if what == "load":
        engine, batch = load(command), command["batch"]
        loaded[key] = Loaded(engine, engine.prepare(np.load(command["input"])[:batch]), batch)
        return {"about": engine.about}
    if key not in loaded:
        raise RuntimeError("no engine is loaded" + (f" as {key!r}" if key else ""))
    engine, prepared, batch = loaded[key].engine, loaded[key].prepared, loaded[key].batch
    if what == "run":
        pictures = np.load(command["input"])
        parts = [
            engine.result(engine.run(engine.prepare(pictures[i : i + batch]))) for i in range(0, len(pictures), batch)
        ]
        np.save(command["output"], np.concatenate(parts))
        return {}
    if what == "profile":
        profiles: list[list[dict[str, Any]]] = []
        end = time.perf_counter() + command["seconds"]
        while not profiles or time.perf_counter() < end:
            profiles.append(engine.profile(prepared, 3))  # type: ignore[attr-defined]
        return {"profiles": profiles, "cpu": time.process_time() - started}
    call = functools.partial(engine.run, prepared)
    calls = command.get("calls")
    times = timed_batch(call, 0.0, calls) if calls else timed_batch(call, command["seconds"])
    return {"ms": times, "cpu": time.process_time() - started}


def serve(answer: Callable[[dict[str, Any]], None]) -> None:
    """Obey the commands on stdin until it closes."""
    loaded: dict[str, Loaded] = {}
    for line in sys.stdin:
        try:
            answer(obey(json.loads(line), loaded))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Keep stdout for the answers: what the libraries print goes to stderr."""
    answers = sys.stdout
    sys.stdout = sys.stderr

    def answer(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    serve(answer)


if __name__ == "__main__":
    main()
