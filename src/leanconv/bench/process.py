"""A worker process seen from the coordinator."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from leanconv.bench.rivals import BenchError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Worker:
    """Starts `python -m leanconv.bench.worker` with every library's threads set to `threads`.

    Args: `program`, another worker that obeys the same commands; `environment`, further variables for it.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        program: Sequence[str] = (sys.executable, "-m", "leanconv.bench.worker"),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.name = name
        variables = {variable: str(threads) for variable in _THREAD_VARIABLES} | dict(environment)
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  lives as long as the worker
        self._process = subprocess.Popen(
            list(program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | variables,
            text=True,
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its answer. Raises BenchError with the worker's own words."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
            raise BenchError(f"{self.name} stopped: {last}")
        reply = cast(dict[str, Any], json.loads(line))
        if "error" in reply:
            raise BenchError(f"{self.name}: {reply['error']}")
        return reply

    def holding(self, key: str) -> Held:
        """One of several networks in this worker, to be loaded and timed by itself."""
        return Held(self, key)

    def close(self) -> None:
        """End the worker; it stops when its input closes."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


@dataclass(frozen=True)
class Held:
    """One of the networks in a worker."""

    worker: Worker
    key: str

    @property
    def name(self) -> str:
        return f"{self.worker.name} {self.key}"

    def ask(self, **command: Any) -> dict[str, Any]:
        """As :meth:`Worker.ask`."""
        return self.worker.ask(key=self.key, **command)
