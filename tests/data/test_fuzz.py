"""Whatever is in a file of rows, and whatever it is called: it is read as a plain reading in Python reads it, or refused in one
line that names the file."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mhr.data import TaskCollection, load_tasks
from mhr.errors import DataError, MhrError

fuzz = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ANY = st.characters(exclude_categories=())
TEXT = st.one_of(
    st.text(ANY, max_size=8),
    st.sampled_from(
        ["", " ", "yes", "no", "0", "1", "-1", "true", "null", "a\u2028b", "\ufeffx", "שלום", "\U0001f600", "\ud83d"]
    ),
)
LABEL = st.one_of(TEXT, st.integers(-3, 5), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False))
CHOICES = st.one_of(
    st.none(),
    st.lists(st.sampled_from(["yes", "no", "maybe", "true", "False", "", None, 2.5]), max_size=4),
)
ROW = st.fixed_dictionaries({"input": TEXT}, optional={"targets": LABEL, "choices": CHOICES})


class Faulty(Exception):
    """What the plain reading cannot read."""


class Empty(Exception):
    """A row without an answer."""


def plain(value: Any) -> str:
    """A string without space around it, of what may be one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise Faulty
    return value.strip()


def plain_row(row: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """(input, target, choices) of a row."""
    text = plain(row["input"])
    choices: tuple[str, ...] = ()
    if row.get("choices") is not None:
        choices = tuple(plain(c) for c in row["choices"])
        if len(set(choices)) < 2:
            raise Faulty
    if "targets" not in row:
        raise Faulty
    value = row["targets"]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Empty
    target = plain(value)
    if choices and isinstance(value, bool):
        same = [c for c in choices if c.lower() == target]
        if len(same) != 1:
            raise Faulty
        (target,) = same
    elif choices and (not isinstance(value, str) or (target.isdecimal() and int(target) < len(choices))):
        if not 0 <= int(target) < len(choices):
            raise Faulty
        target = choices[int(target)]
    if choices and target not in choices:
        raise Faulty
    if any("\ud800" <= c <= "\udfff" for c in "".join([text, target, *choices])):
        raise Faulty
    return text, target, choices


def expected(rows: list[dict[str, Any]]) -> list[tuple[str, str, tuple[str, ...]]] | None:
    """What is to be read, sorted; None where the file is to be refused."""
    found = []
    for row in rows:
        try:
            found.append(plain_row(row))
        except Empty:
            continue
        except Faulty:
            return None
    all_withheld = len(found) > 1 and all(target == "-1" for _, target, _ in found)
    return None if not found or all_withheld else sorted(found)


def found(tasks: TaskCollection) -> list[tuple[str, str, tuple[str, ...]]]:
    (task,) = tasks.values()
    examples = [*task.train, *task.test]
    on_both_sides = {e.input for e in task.train} & {e.input for e in task.test}
    assert bool(on_both_sides) == any("inputs repeat" in note for note in tasks.notes)
    return sorted((e.input, e.targets[0], e.choices) for e in examples)


def read(path: Path) -> TaskCollection | str:
    """What is at a path, or the line that refuses it."""
    try:
        return load_tasks(path)
    except MhrError as error:
        return str(error)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        load_tasks(path, **options)
    line = str(raised.value)
    assert line.isprintable(), "one line"
    assert line.startswith(str(path))
    return line


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def render(rows: list[dict[str, Any]], how: str) -> str:
    if how == "list":
        return json.dumps(rows)
    if how == "pretty":
        return json.dumps({"rows": rows}, indent=2)
    return "".join(json.dumps(row) + ("\r\n" if how == "crlf" else "\n") for row in rows)


@fuzz
@given(
    rows=st.lists(ROW, min_size=1, max_size=9),
    how=st.sampled_from(["lines", "crlf", "list", "pretty"]),
    ending=st.sampled_from([".jsonl", ".json", ".ndjson", ".JSON"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_json(folder: Path, rows: list[dict[str, Any]], how: str, ending: str, encoding: str) -> None:
    path = folder / f"x{ending}"
    path.write_bytes(render(rows, how).encode(encoding))
    plainly = expected(rows)
    if plainly is None:
        refused(path)
    else:
        assert found(load_tasks(path)) == plainly


@fuzz
@given(rows=st.lists(ROW, min_size=2, max_size=9))
def test_skipping(folder: Path, rows: list[dict[str, Any]]) -> None:
    path = folder / "skip.jsonl"
    path.write_text(render(rows, "lines"))
    sound = [row for row in rows if expected([row]) is not None]
    if expected(sound) is None:
        refused(path, on_bad_row="skip")
    else:
        assert found(load_tasks(path, on_bad_row="skip")) == expected(sound)


CELL = st.text(st.characters(codec="utf-8"), max_size=8)


@fuzz
@given(
    rows=st.lists(st.fixed_dictionaries({"input": CELL, "targets": CELL}), min_size=1, max_size=9),
    ending=st.sampled_from([".csv", ".tsv", ".parquet"]),
)
def test_tables(folder: Path, rows: list[dict[str, str]], ending: str) -> None:
    path = folder / f"x{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["input", "targets"], delimiter="\t" if ending == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(text.getvalue().encode())
    plainly = expected(rows)
    zero = ending != ".parquet" and any("\0" in cell for row in rows for cell in row.values())
    if plainly is None or zero:
        refused(path)
        return
    tasks = read(path)
    if isinstance(tasks, str):
        # A cell over several lines, which the same characters without quoting would not be.
        assert "may span lines" in tasks
        assert any("\n" in cell for row in rows for cell in row.values())
    else:
        assert found(tasks) == plainly


@fuzz
@given(
    content=st.binary(max_size=60),
    ending=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.zst"]),
)
def test_bytes(folder: Path, content: bytes, ending: str) -> None:
    path = folder / f"bytes{ending}"
    path.write_bytes(content)
    refused(path)


NAME = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=20)
WORDS = st.sampled_from(
    ["train", "test", "dev", "eval", "x_train", "x_test", "train-00000-of-00002", "0001", "data", "r1"]
)


@fuzz
@given(names=st.lists(st.one_of(WORDS, NAME), min_size=1, max_size=4, unique_by=str.lower))
def test_names_of_files(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "folder"
        folder.mkdir()
        written = []
        for name in names:
            rows = [{"input": f"{name} {i}".strip(), "targets": "a"} for i in range(3)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            written += rows if not name.startswith((".", "__")) else []
        tasks = read(folder)
        if isinstance(tasks, str):
            assert tasks.isprintable()
            assert str(folder) in tasks
            return
        every = [e.input for task in tasks.values() for e in [*task.train, *task.test]]
        trained = [e.input for task in tasks.values() for e in task.train]
        assert set(every) <= {row["input"].strip() for row in written}
        assert not any(os.path.basename(text).startswith(("test", "dev", "eval", "x_test")) for text in trained)
        left_out = any("validation examples are not judged on" in note for note in tasks.notes)
        assert left_out or len(every) == len(written)
