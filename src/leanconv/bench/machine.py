"""What machine a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vpopcntdq",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "avx_vnni",
    "asimddp",
    "i8mm",
)


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Those instruction set extensions of the processor that matter to this kind of arithmetic."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                present = set(line.partition(":")[2].split())
                return [flag for flag in _FLAGS if flag in present]
    except OSError:
        pass
    return []


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Processor, its instruction sets, cores and system, for the record of a measurement."""
    return {
        "cpu": cpu_model(),
        "flags": cpu_flags(),
        "cores": available_cores(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def busy_seconds() -> float | None:
    """CPU seconds that all processes together have used since boot, or None where that cannot be read."""
    try:
        fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, _steal = fields
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
