"""The native core. `leanconv.engine` is the interface for people; this is what it stands on."""

from collections.abc import Sequence
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

def aw_isa_names() -> list[str]:
    """Instruction sets of AW-convolution that were built and that this processor has, best first."""

def aw_correlate(
    shape: Sequence[int],
    transposed: bool,
    source: int,
    source_bf16: bool,
    weight: int,
    strides: Sequence[int],
    gain: int,
    gain_sizes: Sequence[int],
    out: int,
    out_bf16: bool,
    threads: int,
    isa: str = "",
) -> None:
    """AW-convolution, or its gradient of the input (`transposed`: from the gradient of the result), between addresses.

    `shape`: samples, input channels, height, width, output channels, groups, and kernel, stride, padding and dilation
    as pairs. The maps are NHWC without gaps, float32 or bfloat16; the weight is float32 with `strides` in elements,
    the gain [N, g, O, I, h, w] float32 without gaps. Raises ValueError for sizes that do not fit.
    """

def aw_weight_gradient(
    shape: Sequence[int],
    x: int,
    x_bf16: bool,
    grad_y: int,
    grad_y_bf16: bool,
    weight: int,
    strides: Sequence[int],
    gain: int,
    gain_sizes: Sequence[int],
    grad_weight: int,
    grad_strides: Sequence[int],
    grad_gain: int,
    threads: int,
    isa: str = "",
) -> None:
    """The gradients of weight and gain; see :func:`aw_correlate`."""

def aw_attention(
    sizes: Sequence[int],
    x: int,
    first: int,
    norm1: Sequence[int],
    eps1: float,
    second: int,
    norm2: Sequence[int],
    eps2: float,
    gate: str,
    offset: float,
    out: int,
    threads: int,
) -> None:
    """Attention maps of AW-convolution, between addresses of float32 arrays.

    `sizes`: samples, height, width, channels, rows and columns of the averages, hidden channels, maps. A norm is the
    addresses of mean, variance, weight and bias (0 for none), or nothing.
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
