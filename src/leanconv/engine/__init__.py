"""Load a packed file and run it, without PyTorch.

from leanconv import engine
model = engine.load("model.lconv")
logits = model(pictures)                 # uint8 N,H,W,C or float32 N,C,H,W
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.engine.profile import OpTime
from leanconv.program import Input, Output, ProgramError

try:
    from leanconv import _core
except ImportError as error:  # a source tree whose extension was not built
    raise ImportError(
        f"leanconv's native core is not built ({error}); install the package: pip install -e ."
    ) from error

__all__ = ["Input", "Model", "OpTime", "Output", "isa", "isa_names", "load"]


def isa_names() -> list[str]:
    """Instruction sets that were built and that this processor has, best first.

    >>> isa_names()[-1]
    'portable'
    """
    return _core.isa_names()


def isa() -> str:
    """The instruction set that models use here: the best one, or the one that ``LEANCONV_ISA`` names.

    >>> isa() in isa_names()
    True
    """
    forced = os.environ.get("LEANCONV_ISA")
    if not forced:
        return isa_names()[0]
    if forced not in isa_names():
        raise ProgramError(f"LEANCONV_ISA={forced} was not built or this processor lacks it; choose from {isa_names()}")
    return forced


def load(path: str | Path, threads: int | None = None, *, isa: str | None = None) -> Model:
    """Load a packed file.

    Args:
        path: an ``.lconv`` file.
        threads: how many threads one call may use; None: every processor that this process may use (affinity and
            cgroup quota count). A call that finds the threads taken by another call runs alone.
        isa: an instruction set of :func:`isa_names`; None: the best, or what ``LEANCONV_ISA`` names.

    Raises:
        ProgramError: the file is damaged, truncated, of another kind or too new; or `threads` or `isa` make no sense.
        OSError: the file cannot be read.
    """
    return Model(os.fspath(path), threads, isa=isa)


class Model:
    """A network from a packed file (a path) or from its bytes.

    Call it with one array an input: positional in the program's order, or one mapping by input name. uint8 means
    pictures N,H,W,C, which get the file's normalisation ``(u / 255 - mean) / std``; float32 means N,C,H,W (or N,C,L, or
    N,C) that is already normalised. One output comes back as an array, several as a dict by name.

    A model may be called from many threads at once; the GIL is free while it computes. Results do not depend on the
    number of threads or on the batch size.
    """

    def __init__(self, source: str | bytes, threads: int | None = None, *, isa: str | None = None) -> None:
        if threads is not None and not (isinstance(threads, int) and threads >= 1):
            raise ProgramError(f"threads is {threads!r}; give a number from 1 on, or None for all processors")
        try:
            self._core = _core.Model(source, threads or 0, isa or "")
        except (ValueError, RuntimeError) as error:
            raise ProgramError(str(error)) from None
        program = json.loads(self._core.program_json)
        self.inputs: list[Input] = [Input(**i) for i in program["inputs"]]
        """Name, channels, height and width (None: free) and number of dimensions of each input."""
        self.outputs: list[Output] = [Output(**o) for o in program["outputs"]]
        self.program_info: dict[str, Any] = {
            "preprocessing": program["preprocessing"],
            "classes": program["classes"],
            "provenance": program["provenance"],
            "bytes": self._core.file_bytes,
        }
        """Preprocessing, class names, provenance and the file's size in bytes."""
        self.isa: str = self._core.isa
        self.threads: int = self._core.threads
        self._names = [i.name for i in self.inputs]

    def __call__(self, *inputs: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        """Run the network on a batch.

        Raises:
            ProgramError: an array has another type, shape or number of channels than the network takes.
        """
        try:
            results = self._core.run(self._arrays(inputs))
        except ValueError as error:
            raise ProgramError(str(error)) from None
        if len(results) == 1:
            return results[0]
        return {output.name: result for output, result in zip(self.outputs, results, strict=True)}

    def profile(self, *inputs: np.ndarray | Mapping[str, np.ndarray], repeats: int = 20) -> list[OpTime]:
        """Where the time goes: a row an operator, in the order of execution.

        Each row is a dict with ``name``, ``kind``, ``ms`` (median milliseconds over `repeats` runs, for the whole
        batch), ``macs_binary`` and ``macs_real`` (multiply-adds of the whole batch). The conversions of inputs and
        outputs are rows of the kinds ``input`` and ``output``. Work that was fused into another operator counts there.
        """
        try:
            return self._core.profile(self._arrays(inputs), repeats)
        except ValueError as error:
            raise ProgramError(str(error)) from None

    def __repr__(self) -> str:
        takes = ", ".join(f"{i.name} {_shape(i)}" for i in self.inputs)
        gives = ", ".join(o.name for o in self.outputs)
        return f"Model({takes} -> {gives}; {self.isa}, threads={self.threads}, {self.program_info['bytes']} bytes)"

    def _arrays(self, inputs: tuple[np.ndarray | Mapping[str, np.ndarray], ...]) -> list[np.ndarray]:
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            by_name = inputs[0]
            if set(by_name) != set(self._names):
                raise ProgramError(f"the network's inputs are {self._names}; given were {list(by_name)}")
            inputs = tuple(by_name[name] for name in self._names)
        if len(inputs) != len(self._names):
            raise ProgramError(f"the network takes {len(self._names)} inputs {self._names}; {len(inputs)} were given")
        return [self._array(description, x) for description, x in zip(self.inputs, inputs, strict=True)]

    def _array(self, description: Input, given: Any) -> np.ndarray:
        x = np.asarray(given)
        if x.dtype == np.float32 or x.dtype == np.uint8:
            return np.ascontiguousarray(x) if x.ndim else x.reshape(1)
        pictures = " or uint8 N,H,W,C pictures" if description.dims == 4 else ""
        raise ProgramError(
            f"input {description.name!r} takes float32 {_shape(description)}{pictures}, not {x.dtype} {list(x.shape)}; "
            "convert it with .astype(np.float32)"
        )


def _shape(i: Input) -> str:
    sides = {4: (i.height or "H", i.width or "W"), 3: (i.width or "L",), 2: ()}[i.dims]
    return "[" + ", ".join(str(n) for n in ("N", i.channels, *sides)) + "]"
