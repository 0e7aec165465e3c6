"""Measured accuracies: one row a training run, in CSV files such as results/digits.csv, and what they add up to."""

from __future__ import annotations

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from leanconv.extras import need
from leanconv.program import write_atomic

Group = tuple[str, str, str, int, str]  # study, model, arm, epochs, split


class ResultsError(ValueError):
    """Results that cannot be read or added up; one line that says which file and line and what to do."""


@dataclass(frozen=True)
class Run:
    """One training run, a row of a CSV file. `study`, `model`, `arm`, `seed`, `epochs` and `split` say which run it is.

    `top1_percent` is that of the last epoch on `split` ("test" or "validation"), `ops` are float multiply-adds + binary
    ones / 64 for one picture (None where the network could not be compiled, and so not be counted), `minutes` those of
    training and evaluating.
    """

    study: str
    model: str
    arm: str
    seed: int
    top1_percent: float
    ops: int | None
    epochs: int
    split: str
    machine: str
    commit: str
    minutes: float

    def __post_init__(self) -> None:
        if not 0 <= self.top1_percent <= 100:
            raise ResultsError(f"top1_percent: {self.top1_percent} is not between 0 and 100")

    @property
    def key(self) -> tuple[str, str, str, int, int, str]:
        """What tells it from every other run."""
        return (self.study, self.model, self.arm, self.seed, self.epochs, self.split)

    @property
    def group(self) -> Group:
        """What it has in common with runs that differ in their seed alone."""
        return (self.study, self.model, self.arm, self.epochs, self.split)


COLUMNS = [field.name for field in fields(Run)]
_CONVERT: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "int | None": lambda text: int(text) if text else None,
}


def read(path: str | Path) -> list[Run]:
    """The runs in a CSV file, or in all of a folder's ``*.csv`` in the order of their names. Raises ResultsError.

    Files in a folder that have another header (other studies than of accuracy) are passed over; a file that is named
    must have ours.
    """
    path = Path(path)
    if path.is_dir():
        return [run for file in sorted(path.glob("*.csv")) if _header(file) == COLUMNS for run in read(file)]
    lines = _lines(path)
    header = lines[0][1] if lines else []
    if header != COLUMNS:
        raise ResultsError(
            f"{path}: expected the columns {','.join(COLUMNS)}, not {','.join(header) or 'an empty file'}"
        )
    return [_parse(row, f"{path}, line {number}") for number, row in lines[1:] if row]


def append(path: str | Path, run: Run) -> None:
    """Add a row to a CSV file, which is replaced as a whole; a new one gets the header.

    Raises: ResultsError where the file has other columns or holds that run already.
    """
    path = Path(path)
    known = read(path) if path.exists() else []
    if any(run.key == other.key for other in known):
        raise ResultsError(f"{path} holds that run already: {_named(run)}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if known or path.exists():
        text.write(path.read_text(encoding="utf-8").rstrip("\n") + "\n")
    else:
        writer.writerow(COLUMNS)
    writer.writerow(astuple(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue().encode())


@dataclass(frozen=True)
class Summary:
    """Runs that differ in their seed alone. `deviation` is the sample standard deviation, None for one run;
    `minutes` is a mean.
    """

    study: str
    model: str
    arm: str
    epochs: int
    split: str
    seeds: list[int]
    mean: float
    deviation: float | None
    min: float
    max: float
    ops: int | None
    minutes: float

    @property
    def group(self) -> Group:
        """As that of its runs."""
        return (self.study, self.model, self.arm, self.epochs, self.split)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(runs: Iterable[Run]) -> list[Summary]:
    """Mean, deviation and range of top-1 (percent) for each (study, model, arm, epochs, split), in that order.

    Raises: ResultsError where one run is there twice.

    >>> row = {"study": "s", "model": "m", "arm": "1-bit", "ops": 9, "epochs": 1, "split": "test", "machine": "cpu"}
    >>> runs = [Run(**row, seed=i, top1_percent=90.0 + i, commit="c", minutes=1.0) for i in range(3)]
    >>> [(s.seeds, s.mean, s.deviation) for s in summarise(runs)]
    [([0, 1, 2], 91.0, 1.0)]
    """
    groups: dict[Group, list[Run]] = defaultdict(list)
    for run in _unique(runs):
        groups[run.group].append(run)
    summaries = []
    for key in sorted(groups):
        members = sorted(groups[key], key=lambda run: run.seed)
        values = [run.top1_percent for run in members]
        summaries.append(
            Summary(
                *key,
                seeds=[run.seed for run in members],
                mean=statistics.mean(values),
                deviation=statistics.stdev(values) if len(values) > 1 else None,
                min=min(values),
                max=max(values),
                ops=next((run.ops for run in members if run.ops is not None), None),
                minutes=statistics.mean(run.minutes for run in members),
            )
        )
    return summaries


@dataclass(frozen=True)
class Difference:
    """How far `arm` is above `baseline` in points of top-1, pair by pair of runs with one seed.

    `deviation` is the sample standard deviation of the differences and `interval` their mean's 95 % confidence interval
    by Student's t, which takes the differences as normally distributed; both None for one pair.
    """

    study: str
    model: str
    arm: str
    baseline_model: str
    baseline: str
    epochs: int
    split: str
    seeds: list[int]
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def differences(runs: Iterable[Run], arm: str, baseline: str) -> list[Difference]:
    """`arm` against `baseline` by seed, within each (study, epochs, split).

    Each side names an arm, a model, or one of both as ``"model (arm)"``. Two arms are compared for each model that has
    both, two models for each arm; where nothing but one network is on either side, those two (a network and its twin).

    Raises: ResultsError where no two runs can be compared, MissingExtraError without scipy.
    """
    need("differences between arms", "train", "scipy")
    runs = _unique(runs)
    groups: dict[tuple[str, int, str], dict[tuple[str, str], dict[int, float]]] = {}
    for run in runs:
        networks = groups.setdefault((run.study, run.epochs, run.split), defaultdict(dict))
        networks[run.model, run.arm][run.seed] = run.top1_percent
    found = []
    for (study, epochs, split), networks in sorted(groups.items()):
        ours, theirs = (
            [network for network in sorted(networks) if name in sides(*network)] for name in (arm, baseline)
        )
        pairs = [(a, b) for a in ours for b in theirs if a != b and (a[0] == b[0] or a[1] == b[1])]
        if not pairs and len(ours) == len(theirs) == 1:
            pairs = [(ours[0], theirs[0])]
        for one, other in pairs:
            seeds = sorted(networks[one].keys() & networks[other].keys())
            if seeds:
                values = [networks[one][seed] - networks[other][seed] for seed in seeds]
                mean, deviation, interval = _spread(values)
                found.append(Difference(study, *one, *other, epochs, split, seeds, mean, deviation, interval))
    if not found:
        arms = sorted({run.arm for run in runs})
        raise ResultsError(
            f"no runs of {arm!r} and {baseline!r} share study, epochs, split and seed; "
            f"arms are: {', '.join(map(repr, arms)) or 'none'}"
        )
    return found


def sides(model: str, arm: str) -> tuple[str, str, str]:
    """The names by which :func:`differences` knows a network of a study.

    >>> sides("bireal_resnet18", "1-bit long")
    ('bireal_resnet18', '1-bit long', 'bireal_resnet18 (1-bit long)')
    """
    return model, arm, f"{model} ({arm})"


def _spread(values: list[float]) -> tuple[float, float | None, tuple[float, float] | None]:
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, None, None
    from scipy.stats import t

    deviation = statistics.stdev(values)
    reach = float(t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return mean, deviation, (mean - reach, mean + reach)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and entries of each line of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            return [(lines.line_num, row) for row in lines]
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file or folder") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{path}: cannot be read as CSV ({error})") from None


def _header(path: Path) -> list[str]:
    return next((row for _, row in _lines(path)), [])


def _parse(row: list[str], where: str) -> Run:
    if len(row) != len(COLUMNS):
        raise ResultsError(f"{where}: expected {len(COLUMNS)} entries ({','.join(COLUMNS)}), found {len(row)}")
    values = {}
    for field, text in zip(fields(Run), row, strict=True):
        try:
            values[field.name] = _CONVERT[str(field.type)](text)
        except ValueError:
            raise ResultsError(f"{where}: {field.name} must be a number, not {text!r}") from None
    try:
        return Run(**values)
    except ResultsError as error:
        raise ResultsError(f"{where}: {error}") from None


def _unique(runs: Iterable[Run]) -> list[Run]:
    known: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        if run.key in known:
            raise ResultsError(f"this run is there twice, keep one row: {_named(run)}")
        known[run.key] = run
    return list(known.values())


def _named(run: Run) -> str:
    return f"{run.study}, {run.model}, {run.arm}, seed {run.seed}, {run.epochs} epochs, {run.split}"
