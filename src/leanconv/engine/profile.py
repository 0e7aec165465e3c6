"""One row of :meth:`leanconv.engine.Model.profile`, and sums over rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict


class OpTime(TypedDict):
    """Time and work of one operator, for a whole batch."""

    name: str
    kind: str
    ms: float
    macs_binary: int
    macs_real: int


def by_kind(rows: Iterable[OpTime]) -> dict[str, float]:
    """Milliseconds of each kind of operator, largest first.

    >>> row = OpTime(name="a", kind="conv", ms=1.0, macs_binary=0, macs_real=8)
    >>> by_kind([row, {**row, "ms": 2.0}])
    {'conv': 3.0}
    """
    sums: dict[str, float] = {}
    for row in rows:
        sums[row["kind"]] = sums.get(row["kind"], 0.0) + row["ms"]
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
