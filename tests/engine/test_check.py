"""The comparison that the other tests here rely on: one instruction set that alone is wrong is caught and named."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from leanconv import _core
from leanconv.engine import isa_names
from leanconv.program import Program, ProgramError
from tests.engine import builder
from tests.engine.builder import Builder, check, pictures


def network() -> Program:
    b = Builder(5)
    b.output(b.binary_conv(b.bits(b.input), 7))
    return b.program()


def wrong_on(wrong: str, by: float | None) -> type:
    """The engine, whose last number is off by `by` on the instruction set `wrong`; None: it raises there."""

    class Model:
        def __init__(self, data: bytes, threads: int, isa: str, grain_ns: int):
            self.isa, self.model = isa, _core.Model(data, threads, isa, grain_ns=grain_ns)

        def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
            results = self.model.run(inputs)
            if self.isa == wrong:
                if by is None:
                    raise ProgramError("no such kernel")
                results[-1][-1, -1, -1, -1] += np.float32(by)
            return results

    return Model


@pytest.mark.parametrize("exact, by", [(True, 1e-5), (False, 0.01), (True, None)])
@pytest.mark.parametrize("isa", isa_names())
def test_the_only_wrong_set_is_named(isa, exact, by, monkeypatch):
    x = pictures(5)
    check(network(), x, exact=exact)
    monkeypatch.setattr(builder, "_core", SimpleNamespace(Model=wrong_on(isa, by)))
    check(network(), x, exact=exact, isas=[other for other in isa_names() if other != isa])
    with pytest.raises(ProgramError if by is None else AssertionError) as caught:
        check(network(), x, exact=exact)
    assert caught.value.__notes__ == [f"on {isa}, 1 threads, run 0"]
