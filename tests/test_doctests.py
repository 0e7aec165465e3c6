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


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0
