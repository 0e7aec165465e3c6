"""Many strings in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Strings(Sequence[str]):
    """A list of strings as two arrays, `text` (uint8, all of them joined) and `ends` (int64).

    Worker processes share the arrays' memory with their parent; a list of Python strings would be copied into each of
    them bit by bit, since reading a Python object changes its reference count.

    >>> strings = Strings.of(["a.png", "b.png"])
    >>> strings[1], len(strings)
    ('b.png', 2)
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @staticmethod
    def of(strings: Iterable[str]) -> Strings:
        encoded = [os.fsencode(string) for string in strings]
        ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        return Strings(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        begin = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[begin : self.ends[index]].tobytes())
