"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import leanconv

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(leanconv.__path__, "leanconv.")
    if not m.name.endswith(("._core", ".__main__")) and ".recipes" not in m.name
)
NEEDS = {"leanconv.nn.aw_triton_kernels": "triton"}  # which only PyTorch's GPU builds bring


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0
