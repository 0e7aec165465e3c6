"""leanconv.results: the rows of results/*.csv and what they add up to."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from leanconv.results import COLUMNS, ResultsError, Run, append, differences, read, summarise

HEADER = "study,model,arm,seed,top1_percent,ops,epochs,split,machine,commit,minutes"


def run(**entries):
    usual = Run("digits", "bireal_digits", "1-bit", 0, 98.67, 131328, 20, "test", 'CPU "x", 2 GHz', "25da963", 0.45)
    return dataclasses.replace(usual, **entries)


def test_columns_are_those_of_the_convention():
    assert ",".join(COLUMNS) == HEADER


def test_every_recorded_study_can_be_read_and_added_up():
    folder = Path(__file__).parents[1] / "results"
    files = [path for path in folder.glob("*.csv") if path.read_text().startswith(HEADER)]
    assert folder / "digits.csv" in files
    lines = sum(len(path.read_text().splitlines()) - 1 for path in files)
    runs = read(folder)
    assert len(runs) == lines == sum(len(summary.seeds) for summary in summarise(runs))


def test_appended_runs_are_read_back(tmp_path):
    path = tmp_path / "new" / "study.csv"
    runs = [run(), run(seed=1, top1_percent=99.5), run(epochs=30), run(split="validation"), run(arm="float", ops=None)]
    for one in runs:
        append(path, one)
    assert read(path) == runs == read(path.parent)
    assert path.read_text().splitlines()[0] == HEADER
    assert [p.name for p in path.parent.iterdir()] == ["study.csv"]


def test_a_file_without_a_last_newline_is_continued(tmp_path):
    path = tmp_path / "study.csv"
    append(path, run())
    path.write_text(path.read_text().rstrip("\n"))
    append(path, run(seed=1))
    assert [r.seed for r in read(path)] == [0, 1]


def test_a_run_is_recorded_once(tmp_path):
    path = tmp_path / "study.csv"
    append(path, run())
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"study\.csv holds that run already: digits, bireal_digits, 1-bit, seed 0"):
        append(path, run(top1_percent=1.0, commit="other"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns study,model,.*, not an empty file"),
        ("a,b\n1,2\n", "expected the columns study,model,.*, not a,b"),
        (f"{HEADER}\ndigits,m\n", "line 2: expected 11 entries .*, found 2"),
        (f"{HEADER}\ns,m,a,zero,1,1,1,test,c,c,1\n", "line 2: seed must be a number, not 'zero'"),
        (f"{HEADER}\n\ns,m,a,0,101,1,1,test,c,c,1\n", "line 3: top1_percent: 101.0 is not between 0 and 100"),
        (f"{HEADER}\ns,m,a,0,nan,1,1,test,c,c,1\n", "line 2: top1_percent: nan is not between"),
        (f"{HEADER}\ns,\udcff,a,0,1,1,1,test,c,c,1\n", "cannot be read as CSV"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ResultsError, match=f"bad.csv.*{message}") as error:
        read(path)
    assert "\n" not in str(error.value)
    before = path.read_bytes()
    with pytest.raises(ResultsError):
        append(path, run())
    assert path.read_bytes() == before


def test_a_folder_may_hold_other_tables(tmp_path):
    append(tmp_path / "b.csv", run())
    (tmp_path / "a.csv").write_text("size,ms\n1,2\n")
    assert read(tmp_path) == [run()]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ResultsError, match=r"none\.csv: no such file or folder"):
        read(tmp_path / "none.csv")


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_summary_is_numpys(values):
    (summary,) = summarise(run(seed=seed, top1_percent=value, minutes=value) for seed, value in enumerate(values))
    assert math.isclose(summary.mean, np.mean(values), abs_tol=1e-9)
    assert math.isclose(summary.deviation, np.std(values, ddof=1), abs_tol=1e-6)
    assert (summary.min, summary.max, summary.seeds) == (min(values), max(values), list(range(len(values))))
    assert math.isclose(summary.minutes, np.mean(values), abs_tol=1e-9)


def test_what_differs_in_more_than_its_seed_is_not_averaged():
    runs = [run(), run(study="a"), run(model="b"), run(arm="float"), run(epochs=2), run(split="validation")]
    summaries = summarise(runs)
    assert [s.group for s in summaries] == sorted(r.group for r in runs)
    assert all(s.deviation is None and s.mean == 98.67 for s in summaries)


def test_pairs_of_models_are_of_one_arm():
    figures = {("x", "1-bit"): 3.0, ("x", "1-bit long"): 5.0, ("y", "1-bit"): 2.0, ("y", "1-bit long"): 7.0}
    runs = [run(model=m, arm=a, top1_percent=v) for (m, a), v in figures.items()]
    found = differences(runs, "x", "y")
    assert [(d.arm, d.baseline, d.mean) for d in found] == [("1-bit", "1-bit", 1.0), ("1-bit long", "1-bit long", -2.0)]


def test_a_run_that_is_there_twice_is_refused():
    with pytest.raises(ResultsError, match=r"there twice, keep one row: .* seed 0"):
        summarise([run(), run(commit="other")])


def test_paired_differences_are_scipys():
    ours, theirs = [90.0, 91.5, 93.0, 90.5], [89.0, 91.0, 91.0, 90.0]
    runs = [run(arm="new", seed=s, top1_percent=v) for s, v in enumerate(ours)]
    runs += [run(arm="old", seed=s, top1_percent=v) for s, v in reversed(list(enumerate(theirs)))]
    runs += [run(arm="old", seed=9), run(arm="new", seed=0, epochs=3)]  # without a partner
    (found,) = differences(runs, "new", "old")
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    assert found.seeds == [0, 1, 2, 3] and found.mean == 1.0
    assert np.allclose(found.interval, (low, high)) and math.isclose(found.deviation, np.std([1, 0.5, 2, 0.5], ddof=1))
    (other_way,) = differences(runs, "old", "new")
    assert other_way.mean == -1.0


def test_pairs_are_of_one_model_or_of_twins():
    both = [
        run(model=m, arm=a, top1_percent=v) for m, a, v in (("x", "new", 3.0), ("x", "old", 1.0), ("y", "old", 2.0))
    ]
    assert [(d.model, d.baseline_model, d.mean, d.interval) for d in differences(both, "new", "old")] == [
        ("x", "x", 2.0, None)
    ]
    twins = [run(model="x", arm="1-bit", top1_percent=3.0), run(model="y", arm="float", top1_percent=4.0)]
    assert [(d.model, d.baseline_model, d.mean) for d in differences(twins, "1-bit", "float")] == [("x", "y", -1.0)]
    unclear = [*twins, run(model="z", arm="float")]
    assert [d.mean for d in differences(unclear, "x (1-bit)", "y")] == [-1.0]
    with pytest.raises(ResultsError, match=r"no runs of '1-bit' and 'float' share .*'1-bit', 'float'"):
        differences(unclear, "1-bit", "float")


def test_needs_no_torch():
    code = "import sys, leanconv.results, leanconv.cli.results; print('torch' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
