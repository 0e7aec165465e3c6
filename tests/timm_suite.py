"""timm's own tests of its models, on the networks that leanconv registers with it.

    git clone --depth 1 https://github.com/huggingface/pytorch-image-models ../timm
    python tests/timm_suite.py ../timm/tests/test_models.py --models "aw_*" "reaf_*" -- -k "not torchscript"

What follows ``--`` goes to pytest. At the default picture size large networks take minutes, so a few families at a
time; CONTRIBUTING.md says which tests fail, and why.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from leanconv import models

import timm  # isort: skip


class OurNetworks:
    """A pytest plugin that leaves the tests of `names`, and none of timm's other networks or parts."""

    def __init__(self, names: list[str]) -> None:
        self.names = set(names)

    def pytest_configure(self) -> None:
        listed = {"list_models": timm.list_models, "list_pretrained": timm.list_pretrained}

        def narrowed(which: str) -> Any:
            def names(filter: Any = "", module: Any = "", **options: Any) -> list[str]:
                """timm's list without its choice of modules, which are files of timm's."""
                return [name for name in listed[which](filter, **options) if name.split(".")[0] in self.names]

            return names

        for which in listed:
            setattr(timm, which, narrowed(which))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        def name(item: Any) -> str:
            return str(item.callspec.params.get("model_name", "")) if hasattr(item, "callspec") else ""

        items[:] = [item for item in items if name(item).split(".")[0] in self.names]


def main() -> int:
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="tests/test_models.py of timm's sources")
    parser.add_argument("--models", nargs="+", default=["*"], help="names, or timm's patterns for them")
    options = parser.parse_args(arguments[:cut])
    if not options.file.is_file():
        parser.error(f"no file {options.file}: give tests/test_models.py of timm's sources")
    names = sorted(set(models.list_models()) & set(timm.list_models(options.models)))
    if not names:
        parser.error(f"no network of leanconv fits {' '.join(options.models)}: see leanconv.models.list_models()")
    print(f"timm {timm.__version__}, {len(names)} networks: {', '.join(names)}", flush=True)
    pytest_arguments = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--tb=line", str(options.file)]
    return int(pytest.main([*pytest_arguments, *arguments[cut + 1 :]], plugins=[OurNetworks(names)]))


if __name__ == "__main__":
    sys.exit(main())
