"""Train 1-bit convolutional networks in PyTorch, pack them into one small file, run them on the CPU without PyTorch.

`import leanconv` loads neither torch nor timm. :func:`leanconv.compile` does, at its first use.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanconv.compiler import compile

try:
    __version__ = version("leanconv")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

__all__ = ["__version__", "compile"]


def __getattr__(name: str) -> Any:
    if name != "compile":
        raise AttributeError(f"module 'leanconv' has no attribute {name!r}")
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError('leanconv.compile needs PyTorch: pip install "leanconv[train]"') from None
    from leanconv.compiler import compile

    return compile


def __dir__() -> list[str]:
    return sorted([*globals(), "compile"])
