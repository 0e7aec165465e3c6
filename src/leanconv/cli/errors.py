"""What people see when something goes wrong: one line on stderr that says what to do, and exit code 1."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable

from leanconv.extras import extra_of


class CommandError(ValueError):
    """A command that cannot do what it was asked; the text says why and what to do."""


def explain(error: BaseException) -> str | None:
    """One line for people, or None where the error is not one of theirs (then the traceback is shown)."""
    if isinstance(error, ImportError):
        if 'pip install "leanconv[' in str(error):
            return str(error)
        extra = extra_of(error.name or "")
        return f'this needs {error.name}: pip install "leanconv[{extra}]"' if extra else None
    if isinstance(error, ValueError) and (_ours(type(error).__module__) or _ours(_raised_in(error))):
        return str(error)
    if isinstance(error, OSError):
        text = error.strerror or str(error)
        return f"{error.filename}: {text}" if error.filename else text
    return None


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "leanconv"


def _raised_in(error: BaseException) -> str:
    """The module whose code raised it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""


def guarded(run: Callable[[], None], debug: Callable[[], bool]) -> int:
    """Run a command and turn the errors of people into one line on stderr. Returns the exit code."""
    # timm imports torchvision; that its compiled operators are missing matters to no command.
    warnings.filterwarnings("ignore", message="torchvision's compiled operators")
    try:
        run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        line = explain(error)
        if line is None or debug():
            traceback.print_exc()
            return 1
        print("error: " + " ".join(line.split()), file=sys.stderr)
        return 1
    return 0
