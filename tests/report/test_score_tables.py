"""Whatever is in a table of scores: each of its numbers is in the report, or counted as left out, or the table is refused in one line
that names the file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhr.errors import DataError
from mhr.evaluation import METRICS
from mhr.evaluation.metrics import metrics
from mhr.report.material import Material
from mhr.report.report import make_report
from mhr.report.score_tables import SCORE_COLUMNS, SWEEP_COLUMNS, read_table
from tests.data.test_fuzz import TEXT, fuzz
from tests.report.material import rows

NUMBER = st.one_of(st.floats(), st.integers(), st.just(10**400))
ANYTHING = st.one_of(TEXT, NUMBER, st.booleans(), st.none(), st.just([]), st.just({"a": []}))
NAME = st.sampled_from(["a", "b"])
SOUND = {
    "task": NAME,
    "mode": st.sampled_from(["z", "mu", "of their own"]),
    "method": st.sampled_from(["mhr", "theirs"]),
    "seed": st.sampled_from([1, 2, None]),
    "metric": st.sampled_from(["accuracy", "f1", "nist", "acc"]),
    "value": st.floats(0, 1),
}
OF_SWEEP = {
    **{name: SOUND[name] for name in ("task", "mode", "seed", "method", "metric")},
    "run": NAME,
    "status": st.sampled_from(["done", "done", "failed"]),
    "score": SOUND["value"],
}
OPTIONAL = dict.fromkeys(("category", "majority", "n", "shots", "trained", "protocol", "accuracy"), ANYTHING)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read(path: Path) -> Material | str:
    """What is in a table, or the line that refuses it."""
    material = Material()
    try:
        read_table(path, material)
    except DataError as error:
        line = str(error)
        assert line.isprintable(), "one line"
        assert line.startswith(str(path))
        return line
    return material


def left_out(material: Material) -> int:
    """How many rows or units the notes count."""
    counted = [note.partition("left out: ")[2].split() for note in material.notes]
    assert all(words[1] in ("row", "rows", "unit", "units") for words in counted)
    return sum(int(words[0]) for words in counted)


@fuzz
@given(content=st.lists(st.fixed_dictionaries(SOUND), min_size=1, max_size=12), parquet=st.booleans())
def test_every_number_is_read_or_counted(folder: Path, content: list[dict[str, Any]], parquet: bool) -> None:
    path = folder / ("t.parquet" if parquet else "t.jsonl")
    if parquet:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    else:
        rows(path, *content)
    numbers = [tuple(row[name] for name in SCORE_COLUMNS[:-1]) for row in content if row["metric"] in METRICS]
    found = read(path)
    if isinstance(found, str):
        unscored = all(not metrics[metric].scored for *_, metric in numbers)
        assert ("two scores" in found) == (len(set(numbers)) < len(numbers))
        assert ("holds no scores" in found) == (unscored and "two scores" not in found)
        return
    kept = [value for score in found.scores.rows.values() for value in score.measures.values()]
    assert len(kept) + left_out(found) == len(content)
    assert all(row["value"] in kept for row in content if row["metric"] in ("accuracy", "f1"))
    for score in found.scores.rows.values():
        assert metrics[score.metric].scored
        assert score.value == score.measures[score.metric]


@fuzz
@given(content=st.lists(st.fixed_dictionaries(OF_SWEEP), min_size=1, max_size=12))
def test_of_each_unit_of_a_sweep_the_last_row_counts(folder: Path, content: list[dict[str, Any]]) -> None:
    units = {tuple(row[name] for name in ("run", "mode", "task", "seed")): row for row in content}
    done = [row for row in units.values() if row["status"] == "done"]
    found = read(rows(folder / "sweep.jsonl", *content))
    if isinstance(found, str):
        assert "holds no scores but" in found
        assert not done
        return
    assert left_out(found) == len(units) - len(done)
    assert sorted(score.value for score in found.scores.rows.values()) == sorted(row["score"] for row in done)


def test_a_unit_that_failed_and_was_tried_again_is_no_failure(folder: Path) -> None:
    row = {"run": "a", "mode": "z", "task": "x", "seed": 1, "status": "failed", "error": "no memory"}
    other = row | {"seed": 2}
    done = row | {"status": "done", "method": "mhr", "metric": "accuracy", "score": 0.5, "accuracy": 0.5}
    found = read(rows(folder / "again.jsonl", row, other, done))
    assert isinstance(found, Material)
    assert found.scores.of("MHR-z", "x") == {"1": 0.5}
    assert [note.partition(": ")[2] for note in found.notes] == ["left out: 1 unit that failed"]
    assert "but 1 unit that failed" in str(read(rows(folder / "again.jsonl", row)))


@fuzz
@given(data=st.data(), columns=st.sampled_from([SOUND, OF_SWEEP]))
def test_no_cell_ends_in_a_traceback(folder: Path, data: st.DataObject, columns: dict[str, Any]) -> None:
    content = data.draw(st.lists(st.fixed_dictionaries(columns, optional=OPTIONAL), min_size=1, max_size=4))
    changed = data.draw(st.sampled_from([*columns, *OPTIONAL]))
    content[-1][changed] = data.draw(ANYTHING)
    path = rows(folder / "cells.jsonl", *content)
    if isinstance(read(path), Material):
        report = make_report([path])
        report.to_html().encode()
        json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("content", [SCORE_COLUMNS, (*SWEEP_COLUMNS, "method", "score")])
def test_a_column_that_is_missing_is_named(folder: Path, content: tuple[str, ...]) -> None:
    row = dict.fromkeys(content, "x") | {"metric": "accuracy", "value" if "value" in content else "score": 0.5}
    row |= {"status": "done"} if "status" in row else {}
    for name in set(content) - {"metric"}:
        line = read(rows(folder / "lacks.jsonl", {key: value for key, value in row.items() if key != name}))
        assert isinstance(line, str)
        assert "lacks.jsonl:1: no '" in line


@fuzz
@given(content=st.binary(max_size=60), ending=st.sampled_from([".jsonl", ".parquet"]))
def test_bytes(folder: Path, content: bytes, ending: str) -> None:
    path = folder / f"bytes{ending}"
    path.write_bytes(content)
    assert isinstance(read(path), str)


@pytest.mark.parametrize("line", ["9" * 5000, '{"value": ' + "9" * 5000 + "}", "[" * 100_000, "{", "[]", "null"])
def test_lines_that_are_no_rows(folder: Path, line: str) -> None:
    path = folder / "line.jsonl"
    path.write_text("\n" + line + "\n")
    assert f"{path}:2: " in str(read(path))


@pytest.mark.parametrize("column", ["trained", "shots", "n"])
@pytest.mark.parametrize("value", ["9" * 400, "-1", "1.5", "true", '"many"', "Infinity"])
def test_a_count_that_is_none_is_named(folder: Path, column: str, value: str) -> None:
    path = folder / "counts.jsonl"
    row = {"task": "a", "mode": "z", "method": "mhr", "seed": 1, "metric": "accuracy", "value": 0.5}
    path.write_text(f'{json.dumps(row)[:-1]}, "{column}": {value}}}\n')
    assert f"{path}:1: {column} is " in str(read(path))
