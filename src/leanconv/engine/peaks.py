"""What this processor can do at most, measured: the scale for every time that the engine takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from leanconv import _core
from leanconv.program import ProgramError

# Instruction sets of the engine, the plainest first: each may use what those before it have.
_SETS = ("portable", "avx2", "avx512", "avx512vnni", "avx512vpopcntdq")


@dataclass(frozen=True)
class Rate:
    """Multiply-adds of one form: `gmacs` 1e9 a second of all threads, `macs_per_cycle` of one core (0: clock unknown).

    `isa` is the plainest instruction set of the engine that has these instructions; `kind` is ``binary``, ``int8``,
    ``bf16`` or ``fp32``.
    """

    name: str
    isa: str
    kind: str
    gmacs: float
    macs_per_cycle: float


@dataclass(frozen=True)
class Bandwidth:
    """Reading a buffer that lies in one level (L1, L2, L3 or memory): `bytes` a thread, 1e9 a second of all threads."""

    level: str
    bytes: int
    gb_per_s: float


@dataclass(frozen=True)
class Peaks:
    """Peak rates of this processor with `threads` threads; see :func:`measure`."""

    clock_ghz: float
    threads: int
    arithmetic: tuple[Rate, ...]
    bandwidth: tuple[Bandwidth, ...]

    def best(self, kind: str, isa: str) -> Rate | None:
        """The quickest form of `kind` that the engine's instruction set `isa` may use; None where there is none.

        >>> table = Rate("vpshufb", "avx2", "binary", 500, 126)
        >>> count = Rate("vpopcntd", "avx512vpopcntdq", "binary", 2700, 682)
        >>> peaks = Peaks(4.0, 1, (table, count), ())
        >>> peaks.best("binary", "avx512").name, peaks.best("binary", "avx512vpopcntdq").name
        ('vpshufb', 'vpopcntd')
        >>> peaks.best("fp32", "avx2") is None
        True
        """
        allowed = {isa, *(_SETS[: _SETS.index(isa)] if isa in _SETS else _SETS[:1])}
        rates = [rate for rate in self.arithmetic if rate.kind == kind and rate.isa in allowed]
        return max(rates, key=lambda rate: rate.gmacs, default=None)

    def level(self, size: int) -> Bandwidth | None:
        """The first level of memory that holds `size` bytes of each thread beside other things: twice its buffer here.

        >>> peaks = Peaks(4.0, 1, (), (Bandwidth("L1", 16384, 400), Bandwidth("memory", 1 << 26, 30)))
        >>> peaks.level(32768).level, peaks.level(32769).level
        ('L1', 'memory')
        """
        fitting = (entry for entry in self.bandwidth if size <= 2 * entry.bytes * self.threads)
        return next(fitting, self.bandwidth[-1] if self.bandwidth else None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure(seconds: float = 0.5, threads: int = 1) -> Peaks:
    """Measure the peaks of this processor: loops over registers, and reads of buffers of several sizes.

    Every loop runs in many short bursts, of which the quickest counts, so other processes disturb little. The clock is
    that of a chain of dependent additions, timed between the bursts of each loop.

    Args:
        seconds: about how long (filling the buffers comes on top; 2 and more give figures that repeat within 1 %).
        threads: how many threads work at the same time.

    Raises:
        ProgramError: `seconds` or `threads` make no sense.

    >>> peaks = measure(0.02)
    >>> all(rate.gmacs > 0 for rate in peaks.arithmetic) and peaks.bandwidth[0].level
    'L1'
    """
    try:
        found = _core.peaks(seconds, threads)
    except ValueError as error:
        raise ProgramError(str(error)) from None
    return Peaks(
        found["clock_ghz"],
        found["threads"],
        tuple(Rate(**row) for row in found["arithmetic"]),
        tuple(Bandwidth(**row) for row in found["bandwidth"]),
    )
