"""`leanconv results`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from leanconv.cli.errors import CommandError
from leanconv.cli.results import results
from leanconv.results import ResultsError, Run, append

RECORDED = Path(__file__).parents[2] / "results"


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.csv"
    for arm, values in {"1-bit": (90, 92), "float [a,b]": (95, 95)}.items():
        for seed, value in enumerate(values):
            append(path, Run("study", "net", arm, seed, value, 1500, 3, "test", "cpu", "c0ffee", 1.5))
    return path


def test_lines_of_the_table(study, capsys):
    results([study], None, False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    cells = re.split(r"\s{2,}", lines[1].strip())
    assert cells == ["study", "net", "1-bit", "3", "test", "2", "91.00 ± 1.41", "90.00 to 92.00", "1,500", "1.5"]
    assert "float [a,b]" in lines[2] and "95.00 ± 0.00" in lines[2]


def test_pairs_of_arms_whose_names_have_commas(study, capsys):
    results([study], "1-bit,float [a,b]", False)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "net (1-bit)" in last and "net (float [a,b])" in last and "-4.00 ± 1.41" in last
    assert "-16.71 to +8.71" in last  # 4 +- 12.706 * 1.414 / sqrt(2)


def test_json(study, capsys):
    results([study], "float [a,b],1-bit", True)
    shown = json.loads(capsys.readouterr().out)
    assert [(s["arm"], s["mean"], s["seeds"]) for s in shown["summaries"]] == [
        ("1-bit", 91.0, [0, 1]),
        ("float [a,b]", 95.0, [0, 1]),
    ]
    assert [(d["arm"], d["baseline"], d["mean"]) for d in shown["pairs"]] == [("float [a,b]", "1-bit", 4.0)]
    results([study], None, True)
    assert "pairs" not in json.loads(capsys.readouterr().out)


def test_mistakes(study, tmp_path):
    with pytest.raises(CommandError, match=r"--pairs 1-bit,flat: expected two models or arms, .* '1-bit', 'float"):
        results([study], "1-bit,flat", False)
    with pytest.raises(ResultsError, match="no such file"):
        results([tmp_path / "none"], None, False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandError, match="empty: no runs are recorded here"):
        results([tmp_path / "empty"], None, False)


def test_the_command_shows_the_checkouts_own(leanconv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = json.loads(leanconv("results", "--json").stdout)["summaries"]
    named = json.loads(leanconv("results", RECORDED, "--json").stdout)["summaries"]
    assert shown == named and "bireal_digits" in [s["model"] for s in shown]
    (tmp_path / "results").mkdir()
    append(tmp_path / "results" / "mine.csv", Run("mine", "net", "float", 0, 50, 1, 1, "test", "cpu", "c0ffee", 1.0))
    assert [s["study"] for s in json.loads(leanconv("results", "--json").stdout)["summaries"]] == ["mine"]


def test_a_bad_row_is_one_line(error, study):
    study.write_text(study.read_text() + "study,net\n")
    assert "study.csv, line 6: expected 11 entries" in error("results", study)
