"""docs/compiler.md lists exactly the operators that the compiler lowers."""

import re
from pathlib import Path

from leanconv.compiler import elementwise, maps  # noqa: F401  (fill the table)
from leanconv.compiler.lower import TABLE

DOCS = Path(__file__).parents[2] / "docs" / "compiler.md"


def test_the_documented_operators_are_those_of_the_table():
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(TABLE)
