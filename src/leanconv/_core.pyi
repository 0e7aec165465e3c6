"""The native core. `leanconv.engine` is the interface for people; this is what it stands on."""

from typing import Any

import numpy as np

from leanconv.engine.profile import OpTime

def read(source: str | bytes) -> tuple[str, dict[str, np.ndarray]]:
    """The program's JSON text and the tensors of a packed file (a path, or the file's bytes), with every check.

    Raises ValueError (one line: damaged, truncated, too new, not a leanconv file) and OSError.
    """

def isa_names() -> list[str]:
    """Instruction sets that were built and that this processor has, best first."""

def available_cores() -> int:
    """Processors that this process may use: the affinity mask, cut to the cgroup's quota."""

def peaks(seconds: float = 0.5, threads: int = 1) -> dict[str, Any]:
    """What this processor can do at most; `leanconv.engine.peaks.measure` says what the entries mean.

    Raises ValueError.
    """

class Model:
    """A loaded network. Calls from many threads at once are fine; the GIL is released while it computes."""

    def __init__(self, source: str | bytes, threads: int = 0, isa: str = "", grain_ns: float = 6000.0) -> None:
        """`grain_ns`: work below this estimate is not shared between threads; 0 shares everything, which tests use."""

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """One array an input (C-contiguous uint8 or float32), one float32 array an output."""

    def profile(self, arrays: list[np.ndarray], repeats: int = 20) -> list[OpTime]:
        """A row an operator: name, kind, ms (median milliseconds), macs_binary, macs_real."""

    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...
    @property
    def program_json(self) -> str: ...
