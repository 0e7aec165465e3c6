"""The progress bar of a training run: loss, top-1, pictures a second, time left; plain lines without a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich import progress as rich_progress
from rich.console import Console


class Progress:
    """A context manager around one run of `epochs` x `steps` batches."""

    def __init__(self, title: str, epochs: int, steps: int, batch_size: int, *, enabled: bool = True) -> None:
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.enabled = enabled
        self.console = Console(stderr=True)
        self.live = enabled and self.console.is_terminal
        self.done_epochs = self.done_before = 0
        self.started = time.perf_counter()
        self.bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            rich_progress.TextColumn("loss {task.fields[loss]}"),
            rich_progress.TextColumn("top-1 {task.fields[top1]} (measured {task.fields[measured]})"),
            rich_progress.TextColumn("{task.fields[speed]} pictures/s"),
            rich_progress.TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task(
            title, total=epochs * steps, epoch=1, epochs=epochs, loss="-", top1="-", measured="-", speed="-"
        )
        self.title = title

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def resume(self, epoch: int, step: int, measured: float | None) -> None:
        """The run goes on after `epoch` epochs and `step` batches; `measured` is the last top-1."""
        self.done_epochs, self.done_before = epoch, epoch * self.steps + step
        self.started = time.perf_counter()
        if self.live:
            self.bar.update(self.task, completed=self.done_before, measured=_percent(measured))
        elif self.enabled and 0 < self.done_before < self.epochs * self.steps:
            self.console.print(f"{self.title} goes on in epoch {epoch + 1} after step {step}", highlight=False)

    def step(self, batch: int, loss: float, top1: float) -> None:
        """`batch` batches of the current epoch are done; `loss` and `top1` are their means."""
        if self.live:
            done = self.done_epochs * self.steps + batch
            speed = (done - self.done_before) * self.batch_size / (time.perf_counter() - self.started)
            self.bar.update(
                self.task,
                completed=done,
                epoch=min(self.done_epochs + 1, self.epochs),
                loss=f"{loss:.3f}",
                top1=_percent(top1),
                speed=f"{speed:.0f}",
            )

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done and measured."""
        self.done_epochs += 1
        if self.live:
            self.bar.update(self.task, completed=self.done_epochs * self.steps, measured=_percent(row["top1"]))
        elif self.enabled:
            self.console.print(
                f"{self.title} epoch {self.done_epochs}/{self.epochs}  loss {row['train_loss']:.3f}  "
                f"top-1 {_percent(row['top1'])}  {row['pictures_per_second']:.0f} pictures/s",
                highlight=False,
                soft_wrap=True,
            )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
