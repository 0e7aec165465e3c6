"""benchmarks/model_table.py: docs/models.md is what results/, recipes/ and the packed files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import model_table
from benchmarks.model_table import Sources, filled, tables
from leanconv.networks import Network
from leanconv.results import Run, append
from leanconv.train.recipe import make_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A packed bireal_digits, untrained, with the provenance of a trained one."""
    from leanconv.networks import from_name

    network: Network = from_name("bireal_digits", num_classes=10, in_chans=1)
    recipe = make_recipe({"model": "bireal_digits", "data": "digits", "epochs": 20, "learning_rate": 0.1, "seed": 1})
    network.training = {"top1": 443 / 450, "split": "test", "epoch": 20, "recipe": recipe.model_dump(mode="json")}
    return network.compile(verify=False)[0].to_bytes()


@pytest.fixture
def root(tmp_path, weights):
    """A checkout with one network that ships, its float twin, and a recipe that nobody followed yet."""
    (tmp_path / "src/leanconv/weights").mkdir(parents=True)
    (tmp_path / "src/leanconv/weights/bireal_digits.lconv").write_bytes(weights)
    for model, arm, ops, values in [
        ("bireal_digits", "1-bit", 131328, (97.0, 98.44, 99.5)),
        ("resnet_digits", "float", 3034368, (99.0,)),
    ]:
        for seed, value in enumerate(values):
            run = Run("digits", model, arm, seed, value, ops, 20, "test", "cpu", "c0ffee", 1.0)
            append(tmp_path / "results/digits.csv", run)
    append(tmp_path / "results/digits.csv", Run("digits", "tuned", "x", 0, 1.0, 1, 20, "validation", "cpu", "c", 1.0))
    for number, (machine, batch, size) in enumerate([("Fast", 1, 8), ("Fast", 8, 8), ("Other", 1, 16)]):
        measured = {"model": "bireal_digits", "threads": 1, "batch": batch, "size": [size, size]}
        measured |= {"engine_ms": 0.02849 * batch, "machine": {"cpu": machine}}
        (tmp_path / f"results/latency_{number}.json").write_text(json.dumps(measured))
    (tmp_path / "recipes/imagenet").mkdir(parents=True)
    (tmp_path / "recipes/imagenet/big.yaml").write_text(
        "{model: bireal_resnet18, data: 'imagefolder:x', epochs: 1, learning_rate: 0.1,"
        " published: {top1: 0.564, source: the paper}}"
    )
    return tmp_path


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_tables_say_what_the_sources_say(root):
    text = tables(Sources.read(root))
    size = f"{(root / 'src/leanconv/weights/bireal_digits.lconv').stat().st_size:,}"
    counts = ["2,949,120", "85,248", "131,328"]
    ships, trained, waits = (rows(part)[2:] for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:])
    assert ships == [
        ["`bireal_digits`", "digits", "98.44", "1", "98.31 ± 1.25 (3 seeds)", size, *counts, "0.0285"],
    ]
    assert rows(text)[0][-1] == "ms, Fast"
    assert trained == [["digits", "`resnet_digits`", "float", "20", "99.00 (1 seed)", "3,034,368"]]
    assert waits == [["`imagenet/big`", "`bireal_resnet18`", "the paper (not yet measured by us)", "56.4"]]


def test_a_file_that_no_run_explains_has_no_mean(root):
    (root / "results/digits.csv").write_text((root / "results/digits.csv").read_text().replace("98.44", "98.22"))
    row = rows(tables(Sources.read(root)))[2]
    assert row[:5] == ["`bireal_digits`", "digits", "98.44", "1", ""]


def test_without_any_results():
    assert tables(Sources()) == "Nothing was trained yet."


def test_only_the_block_changes(root):
    page = f"before\n{model_table.BEGIN}\nold\n{model_table.END}\nafter\n"
    new = filled(page, Sources.read(root))
    assert new.startswith(f"before\n{model_table.BEGIN}\n### ") and new.endswith(f"\n{model_table.END}\nafter\n")
    assert "old" not in new and filled(new, Sources.read(root)) == new
    with pytest.raises(SystemExit, match="lacks the markers"):
        filled("no markers", Sources())


def test_check_notices_a_stale_page(root, monkeypatch):
    (root / "docs").mkdir()
    page = root / "docs/models.md"
    page.write_text(f"{model_table.BEGIN}\n{model_table.END}\n")
    monkeypatch.setattr(model_table, "ROOT", root)
    monkeypatch.setattr("sys.argv", ["model_table.py", "--check"])
    with pytest.raises(SystemExit, match="out of date"):
        model_table.main()
    monkeypatch.setattr("sys.argv", ["model_table.py"])
    model_table.main()
    monkeypatch.setattr("sys.argv", ["model_table.py", "--check"])
    model_table.main()
    assert "bireal_digits" in page.read_text()


def test_the_page_of_this_checkout_is_up_to_date():
    page = (ROOT / "docs/models.md").read_text()
    assert filled(page, Sources.read(ROOT)) == page, "python benchmarks/model_table.py"
