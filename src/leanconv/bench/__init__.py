"""Latency of the engine beside other engines, measured in one run; see :func:`run_bench`."""

from __future__ import annotations

from leanconv.bench.compare import Result, run_bench
from leanconv.bench.rivals import BenchError, parse_rivals

__all__ = ["BenchError", "Result", "parse_rivals", "run_bench"]
