"""Tables of scores, JSONL or Parquet: of a sweep, or one number a row."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mhr.analysis.scores import Score
from mhr.errors import DataError
from mhr.evaluation import METRICS
from mhr.report.material import Group, Material, adapted_label

SCORE_COLUMNS = ("task", "mode", "method", "seed", "metric", "value")
"""Columns of a table of scores, one number a row; "category" may stand beside them. The table of a sweep has a column for each
metric instead."""


def read_sweep(path: Path, material: Material) -> None:
    table = path.parent / "results.jsonl"
    if not table.is_file():
        raise DataError(f"{path.parent} is a sweep without results yet: go on with mhr sweep --resume")
    read_table(table, material)


def read_table(path: Path, material: Material) -> None:
    """A table of scores: of a sweep, or one number a row. A contestant is a method in a mode, of one run."""
    groups: dict[tuple[str, ...], Group] = {}
    latest: dict[tuple[str, ...], Score] = {}
    failed = 0
    rows = list(_rows(path))
    shots: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for _, row in rows:
        shots[_contestant(row)].add(row.get("shots") or 0)
    for number, row in rows:
        where = f"{path}:{number}"
        of_sweep = {"run", "mode", "task", "seed", "status"} <= row.keys()
        if of_sweep and row["status"] != "done":
            failed += 1
            continue
        missing = [] if of_sweep else [name for name in SCORE_COLUMNS if name not in row]
        if missing:
            raise DataError(f"{where}: no {missing[0]!r}: a table of scores has the columns {', '.join(SCORE_COLUMNS)}")
        if not of_sweep and row["metric"] not in METRICS:
            continue
        key = _contestant(row)
        if key not in groups:
            groups[key] = _group_of_row(row, shots[key], path, material)
        parsed = _score_of_row(row, groups[key].label, where)
        at = (parsed.contestant, parsed.task, str(parsed.seed))
        if at in latest and not of_sweep:
            material.scores.add([latest[at], parsed])  # which refuses them, naming both
        latest[at] = parsed  # a unit of a sweep that was tried again counts once
    if not latest:
        raise DataError(f"{path} holds no scores: expected rows with a metric of {', '.join(METRICS)}")
    if failed:
        material.notes.append(f"{path}: {failed} units failed and are left out")
    material.scores.add(latest.values())


def _contestant(row: Mapping[str, Any]) -> tuple[str, ...]:
    return str(row.get("run", "")), str(row.get("method", "")), str(row.get("mode", ""))


def _group_of_row(row: Mapping[str, Any], shots: Iterable[int], path: Path, material: Material) -> Group:
    label = adapted_label(str(row["method"]), str(row["mode"]), shots)
    if label in material.groups and row.get("run"):
        label = f"{label} ({row['run']})"
    group = material.group(label, path)
    group.trained, group.protocol = row.get("trained"), str(row.get("protocol") or "")
    named = path.parent.name if "run" in row else path.stem
    material.collections[group.label] = str(row.get("collection") or named)
    return group


def _score_of_row(row: Mapping[str, Any], label: str, where: str) -> Score:
    metric = str(row.get("metric") or next((name for name in METRICS if row.get(name) is not None), "score"))
    value = row["value"] if "value" in row else row.get("score")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{where}: value is {value!r}, expected a number")
    seed = None if row["seed"] is None else str(row["seed"])
    category = str(row.get("category") or "")
    task, majority, n = str(row["task"]), row.get("majority"), row.get("n")
    return Score(label, task, value, metric, seed, category, None, majority, n, measures_of(row))


def measures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that a row, or a task of an evaluation, has values of."""
    return {name: float(row[name]) for name in METRICS if isinstance(row.get(name), (int, float))}


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".parquet":
        try:
            yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from None
        return
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: no valid JSON ({error.msg}): expected one row a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {line:.40}")
        yield number, row
