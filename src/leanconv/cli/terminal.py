"""Where tables go: as wide as the terminal, and wide enough for every column where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

WIDE = 160


def console() -> Console:
    """A console on stdout."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A status line on stderr where that is a terminal."""
    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(text)
