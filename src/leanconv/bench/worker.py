"""One engine in a process of its own: reads commands, one JSON object a line, and answers the same way.

{"do": "load", "engine": ..., "path": ..., "threads": ..., ...}   -> {"about": {...}}
{"do": "run", "input": "x.npy", "output": "y.npy"}                -> {}            all pictures, one after another
{"do": "time", "seconds": 0.06}                                   -> {"ms": [...], "cpu": seconds}
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from leanconv.bench.engines import load


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


def serve(answer: Callable[[dict[str, Any]], None]) -> None:
    """Obey the commands on stdin until it closes."""
    run: Callable[[np.ndarray], np.ndarray] | None = None
    prepared: Any = None
    batch = 1
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["do"] == "load":
                engine = load(command)
                run, batch = engine.run, command["batch"]
                prepared = engine.prepare(np.load(command["input"])[:batch])
                answer({"about": engine.about})
            elif run is None:
                raise RuntimeError("no engine is loaded")
            elif command["do"] == "run":
                pictures = np.load(command["input"])
                parts = [
                    engine.result(run(engine.prepare(pictures[i : i + batch]))) for i in range(0, len(pictures), batch)
                ]
                np.save(command["output"], np.concatenate(parts))
                answer({})
            else:
                cpu = time.process_time()
                times = timed_batch(functools.partial(run, prepared), command["seconds"])
                answer({"ms": times, "cpu": time.process_time() - cpu})
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
