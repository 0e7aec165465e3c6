"""What a run tells while it goes: JSON lines in ``log.jsonl`` and the same figures for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from leanconv.program import write_atomic

Row = dict[str, Any]


def read(path: str | Path) -> list[Row]:
    """The rows of a log; a last line that a killed run left incomplete is dropped.

    Each has ``kind`` ("step" or "epoch"), ``epoch`` and ``step`` (steps done since the run began).
    """
    path = Path(path)
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Log:
    """Writes rows to ``folder/log.jsonl`` and their numbers to ``folder/tensorboard``.

    Args:
        step: rows beyond this step are dropped: those steps will be done again.
        writes: False keeps the rows in memory alone, as processes other than the first do.
    """

    def __init__(self, folder: Path, step: int, *, writes: bool = True) -> None:
        self.path, self.writes = folder / "log.jsonl", writes
        self.rows = [row for row in read(self.path) if row["step"] <= step]
        self.writer: Any = None
        if writes:
            from torch.utils.tensorboard import SummaryWriter

            write_atomic(self.path, b"".join(_line(row) for row in self.rows))
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: Row) -> None:
        """Append a row and flush it."""
        self.rows.append(row)
        if not self.writes:
            return
        with self.path.open("ab") as file:
            file.write(_line(row))
        for name, value in row.items():
            if name not in ("kind", "step", "epoch"):
                self.writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def epochs(self) -> list[Row]:
        """The rows of whole epochs."""
        return [row for row in self.rows if row["kind"] == "epoch"]

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()


def _line(row: Row) -> bytes:
    return (json.dumps(row, allow_nan=False) + "\n").encode()
