"""Tables of scores, JSONL or Parquet: of a sweep, or one number a row."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mhr.analysis.scores import Score, Seed
from mhr.data.faults import has_surrogate
from mhr.errors import DataError
from mhr.evaluation import METRICS
from mhr.evaluation.metrics import metrics
from mhr.files import read_json
from mhr.report.material import Group, Material, adapted_label
from mhr.report.tables import count, first_names

SCORE_COLUMNS = ("task", "mode", "method", "seed", "metric", "value")
"""Columns of a table of scores, one number a row; "category" may stand beside them. The table of a sweep has a column for each
metric instead."""

SWEEP_COLUMNS = ("run", "mode", "task", "seed", "status")
"""Columns of every row of a sweep, by which it is known; one that is done has "method" and "score" too."""

ABOVE_ONE = 1e-6
"""How far a share or a correlation may be above 1."""

Key = tuple[str, ...]


def read_sweep(path: Path, material: Material) -> None:
    """The table of a sweep, also of one that is at work or was killed: a truncated row is none yet, and units that were asked for and
    have none are counted as missing."""
    table = path.parent / "results.jsonl"
    if not table.is_file():
        raise DataError(f"{path.parent} is a sweep without results yet: go on with mhr sweep --resume")
    asked = read_json(path, DataError).get("units", [])
    rows = list(_rows(table, appended=True))
    held = {_unit(row) for row in rows}
    missing = [unit for unit in asked if (*unit[:3], str(unit[3])) not in held]
    if missing:
        material.notes.append(
            f"{path.parent}: {len(missing)} of the {count(len(asked), 'unit')} of the sweep {'is' if len(missing) == 1 else 'are'} missing, "
            f"such as {'/'.join(map(str, missing[0]))}: go on with mhr sweep --resume"
        )
    _read(table, rows, material)


def read_table(path: Path, material: Material) -> None:
    """A table of scores: of a sweep, or one number a row. A contestant is a method in a mode, of one run.

    Of a unit of a sweep that was tried again the last row counts. Of several metrics of a task, the one that the table has first gives the
    score. Rows of metrics that are not known, or are no score and stand alone, are left out with a note.

    Raises DataError, naming file and row, for what is no such table and for two values of the same.
    """
    _read(path, _rows(path), material)


def _read(path: Path, rows: Iterable[_Row], material: Material) -> None:
    units: dict[tuple[Any, ...], _Row] = {}
    numbers: dict[tuple[Key, str, Seed], dict[str, _Row]] = {}
    first: dict[str, dict[str, None]] = {}
    unknown: Counter[str] = Counter()
    for row in rows:
        if row.of_sweep:
            units[_unit(row)] = row
            continue
        row.check(SCORE_COLUMNS)
        task, metric = row.name("task"), row.name("metric")
        if metric not in METRICS:
            unknown[metric] += 1
            continue
        own = numbers.setdefault((row.contestant, task, row.seed), {})
        if metric in own:
            method, mode = row.name("method"), row.name("mode")
            raise DataError(
                f"{row.where}: two scores for {adapted_label(method, mode, ())} on task {task!r}, seed {row.seed}, by {metric}, the "
                f"first in row {own[metric].number}: give each evaluation once"
            )
        own[metric] = row
        if metrics[metric].scored:
            first.setdefault(task, {})[metric] = None

    done = [row for row in units.values() if row.columns["status"] == "done"]
    for row in done:
        row.check(("method", "score"))
    shots: dict[Key, set[int]] = {}
    for row in (*done, *(row for own in numbers.values() for row in own.values())):
        shots.setdefault(row.contestant, set()).add(row.whole("shots") or 0)
    groups = _Groups(path, material, shots)
    found = [row.score_of_unit(groups.of(row)) for row in done]
    unscored: Counter[str] = Counter()
    for (_, task, _), own in numbers.items():
        main = next((metric for metric in first.get(task, ()) if metric in own), None)
        if main is None:
            unscored.update(own.keys())
            continue
        measures = {metric: row.value(metric) for metric, row in own.items()}
        found.append(own[main].score(groups.of(own[main]), main, measures[main], measures))

    why = [
        (len(units) - len(done), "unit", "that failed"),
        (unknown.total(), "row", f"of metrics that are not known ({_names(unknown)})"),
        (unscored.total(), "row", f"of metrics that are no score ({_names(unscored)}), on tasks without another"),
    ]
    left_out = [f"{count(n, what)} {of}" for n, what, of in why if n]
    if not found:
        but = f" but {' and '.join(left_out)}" if left_out else ""
        if len(units) > len(done):
            raise DataError(
                f"{path} holds no scores{but}: its column error says why; mhr sweep --resume tries them again"
            )
        raise DataError(f"{path} holds no scores{but}: expected rows with a metric of {', '.join(METRICS)}")
    material.notes += [f"{path}: left out: {line}" for line in left_out]
    material.scores.add(found)


def _unit(row: _Row) -> tuple[Any, ...]:
    """The unit of a sweep that a row is about."""
    row.check(SWEEP_COLUMNS)
    return row.name("run"), row.name("mode"), row.name("task"), row.seed


def _names(found: Counter[str]) -> str:
    return first_names([repr(name) for name in found])


class _Groups:
    """The contestants of a table, each told by its method, its mode and the `shots` of its rows."""

    def __init__(self, path: Path, material: Material, shots: Mapping[Key, set[int]]):
        self._path, self._material, self._shots = path, material, shots
        self._known: dict[Key, Group] = {}

    def of(self, row: _Row) -> Group:
        """The contestant of a row, new where the table has not had it."""
        if row.contestant not in self._known:
            self._known[row.contestant] = self._new(row)
        return self._known[row.contestant]

    def _new(self, row: _Row) -> Group:
        run, method, mode = row.contestant
        label = adapted_label(method, mode, self._shots[row.contestant])
        if label in self._material.groups and (run or label in {group.label for group in self._known.values()}):
            label = f"{label} ({run or mode})"
        group = self._material.group(label, self._path)
        group.trained, group.protocol = row.whole("trained"), row.name("protocol", "")
        own = self._path.parent.name if run else self._path.stem
        self._material.collections[group.label] = row.name("collection", own)
        return group


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a table. Its methods raise DataError, naming file and row, for a column that holds something else than they give."""

    path: Path
    number: int
    columns: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"

    @property
    def of_sweep(self) -> bool:
        return self.columns.keys() >= set(SWEEP_COLUMNS) and "value" not in self.columns

    @property
    def contestant(self) -> Key:
        """Its run, empty where the table has none, its method and its mode."""
        return self.name("run", ""), self.name("method"), self.name("mode")

    @property
    def seed(self) -> Seed:
        value = self.columns["seed"]
        if isinstance(value, float) and value.is_integer():  # of a column that somebody's table library made floats
            value = int(value)
        return None if _absent(value) else self._text("seed", value)

    def check(self, expected: tuple[str, ...]) -> None:
        """Refuse a row that lacks one of these columns."""
        missing = [name for name in expected if name not in self.columns]
        if missing:
            raise DataError(
                f"{self.where}: no {missing[0]!r}: a table of scores has the columns {', '.join(SCORE_COLUMNS)}, that of a sweep "
                f"{', '.join(SWEEP_COLUMNS)}, method and score"
            )

    def name(self, column: str, default: str | None = None) -> str:
        """A name, or the default where there is none."""
        value = self.columns.get(column)
        if default is not None and (_absent(value) or value == ""):
            return default
        return self._text(column, value)

    def whole(self, column: str) -> int | None:
        """A count, None where it is not known."""
        value = self.columns.get(column)
        if _absent(value):
            return None
        number = finite(value)
        if number is None or number < 0 or number % 1:
            raise self._fault(column, value, "an integer")
        return int(number)

    def value(self, metric: str, column: str = "value") -> float:
        """What the column holds, as a value of the metric."""
        number = finite(self.columns.get(column))
        if number is None:
            raise self._fault(column, self.columns.get(column), "a number")
        shares = metric not in metrics or metrics[metric].scored
        if shares and abs(number) > 1 + ABOVE_ONE:
            raise self._fault(column, number, f"a value of {metric} of at most 1, as in 0.5 for 50 per cent")
        return number

    def score_of_unit(self, group: Group) -> Score:
        """The score of a unit of a sweep."""
        measures = measures_of(self.columns)
        metric = self.name("metric", next(iter(measures), "score"))
        return self.score(group, metric, self.value(metric, "score"), measures)

    def score(self, group: Group, metric: str, value: float, measures: Mapping[str, float]) -> Score:
        """A score with what else the row tells of it."""
        majority = None if _absent(self.columns.get("majority")) else self.value(metric, "majority")
        task, category, n = self.name("task"), self.name("category", ""), self.whole("n")
        return Score(group.label, task, value, metric, self.seed, category, None, majority, n, measures)

    def _text(self, column: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self._fault(column, value, "a name")
        text = str(value)
        if not text or has_surrogate(text):
            raise self._fault(column, value, "a name of characters that UTF-8 can encode")
        return text

    def _fault(self, column: str, value: Any, expected: str) -> DataError:
        return DataError(f"{self.where}: {column} is {value!r:.40}, expected {expected}")


def _absent(value: Any) -> bool:
    """Whether a cell is empty: NaN is how tables of pandas say so."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def finite(value: Any) -> float | None:
    """The number in a cell; None where there is none, or nan, or infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def measures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that a row, or a task of an evaluation, has values of."""
    numbers = {name: finite(row.get(name)) for name in METRICS}
    return {name: number for name, number in numbers.items() if number is not None}


def _rows(path: Path, appended: bool = False) -> Iterator[_Row]:
    """The rows of a table. appended: its lines are appended whole, so that what stands behind the last end of a line is none yet."""
    if path.suffix == ".parquet":
        try:
            table = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{path} is no readable Parquet file: {said}") from None
        yield from (_Row(path, number, row) for number, row in enumerate(table, 1))
        return
    try:
        content = path.read_bytes()
        text = content[: content.rfind(b"\n") + 1 if appended else None].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 (byte {error.start}): expected JSON, one row a line") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError:
            raise DataError(f"{path}:{number}: JSON that is nested too deep: expected one row a line") from None
        except ValueError as error:  # no JSON, or an integer of thousands of digits
            said = str(getattr(error, "msg", None) or error)
            raise DataError(f"{path}:{number}: no valid JSON ({said}): expected one row a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {line!r:.40}")
        yield _Row(path, number, row)
