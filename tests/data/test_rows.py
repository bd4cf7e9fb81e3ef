from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mhr.data import Faults, Task, load_tasks
from mhr.errors import ConfigError, DataError

ROWS: list[dict[str, Any]] = [
    {"task": "sum", "input": "1+1", "targets": ["2", "two"], "split": "train"},
    {"task": "sum", "input": "1+2", "targets": "3", "split": "test"},
    {"task": "odd", "input": "3", "targets": "yes", "choices": ["yes", "no"], "split": "train", "held_out": True},
    {"task": "odd", "input": "4", "targets": "no", "choices": ["yes", "no"], "split": "test", "held_out": True},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def uniform(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parquet columns have one type each."""
    listed = [{**r, "targets": [r["targets"]] if isinstance(r["targets"], str) else r["targets"]} for r in rows]
    return [{"choices": None, "held_out": None, **r} for r in listed]


@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.parquet"])
def test_both_formats_give_the_same_collection(tmp_path: Path, name: str):
    rows = uniform(ROWS) if name.endswith("parquet") else ROWS
    tasks = load_tasks(write(tmp_path / name, rows))
    assert list(tasks) == ["sum", "odd"]
    assert tasks["sum"].train[0].targets == ("2", "two")
    assert tasks["sum"].test[0].input == "1+2"
    assert tasks["odd"].held_out
    assert tasks["odd"].choices == ("yes", "no")
    assert not tasks["sum"].held_out
    assert tasks["odd"].test[0].id == f"{name}:4"


def test_a_folder_of_files_is_one_collection(tmp_path: Path):
    write(tmp_path / "one.jsonl", [{"input": "a", "targets": "b", "split": "test"}])
    write(tmp_path / "two.jsonl", [{"input": "c", "targets": "d", "split": "test"}])
    assert list(load_tasks(tmp_path)) == ["one", "two"]


def test_files_named_after_splits_are_splits(tmp_path: Path):
    folder = tmp_path / "sums"
    folder.mkdir()
    for split, n in (("train", 4), ("test", 2)):
        write(folder / f"{split}.jsonl", [{"input": f"{split} {i}", "targets": str(i)} for i in range(n)])
    tasks = load_tasks(folder)
    assert list(tasks) == ["sums"]
    assert (len(tasks["sums"].train), len(tasks["sums"].test)) == (4, 2)


def test_columns_by_other_names_and_numbers_of_choices(tmp_path: Path):
    rows = [{"question": f"q{i}", "answer": i % 2, "options": ["left", "right"], "subject": "sides"} for i in range(10)]
    columns = {"input": "question", "targets": "answer", "choices": "options", "task": "subject"}
    task = load_tasks(write(tmp_path / "x.jsonl", rows), column_map=columns)["sides"]
    assert all(e.targets[0] == ["left", "right"][int(e.input[1:]) % 2] for e in task.test + task.train)


def test_letters_of_labelled_choices(tmp_path: Path):
    choices = {"text": ["red", "blue"], "label": ["A", "B"]}
    task = load_tasks(write(tmp_path / "x.jsonl", [{"input": "q", "targets": "B", "choices": choices}]))["x"]
    assert task.train[0].targets == ("blue",)
    assert task.train[0].choices == ("red", "blue")


def test_validation_stands_in_for_test(tmp_path: Path):
    rows = [{"input": s, "targets": "a", "split": s} for s in ("train", "validation")]
    path = write(tmp_path / "x.jsonl", rows)
    assert [e.input for e in load_tasks(path)["x"].test] == ["validation"]
    path = write(path, [*rows, {"input": "test", "targets": "a", "split": "test"}])
    tasks = load_tasks(path)
    assert [e.input for e in tasks["x"].test] == ["test"]
    assert tasks.notes == ["x (1): validation examples are not judged on, since there is a test split"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"targets": "b"}, r"row 'x.jsonl:2' has no column 'input': it has targets; a column map can name another"),
        ({"input": "a"}, r"row 'x.jsonl:2' has no column 'targets': it has input"),
        ({"input": "a", "targets": []}, r"targets must be a list of strings that are not empty, got \[\]"),
        ({"input": " ", "targets": "b"}, r"row 'x.jsonl:2' has no input: expected a string that is not empty"),
        ({"input": "a", "targets": "b", "choices": ["c", "d"]}, r"label 'b', which is not among the choices 'c', 'd'"),
        ({"input": "a", "targets": 2, "choices": ["c", "d"]}, r"target 2 is no index of a choice: expected 0 to 1"),
        ({"input": "a", "targets": "b", "split": "tset"}, r"unknown split 'tset': did you mean 'test'"),
        ({"input": "a", "targets": "b", "held_out": "so"}, r"a held_out that is neither true nor false: 'so'"),
        (
            {"input": "a", "targets": "b", "held_out": True},
            r"task 'x', which is held out in some rows and not in others",
        ),
    ],
)
def test_a_faulty_row_is_told_with_file_and_line(tmp_path: Path, row: dict[str, Any], message: str):
    path = write(tmp_path / "x.jsonl", [{"input": "good", "targets": "row"}, row])
    with pytest.raises(DataError, match=f"^{path}:2: .*{message}"):
        load_tasks(path)


def test_a_cut_line_is_told_and_collecting_goes_on(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"input": "a", "targets": "b"}\n\n{"input": "c", "tar')
    with pytest.raises(DataError, match=f"^{path}:3: is not valid JSON"):
        load_tasks(path)
    faults = Faults(strict=False)
    assert len(load_tasks(path, faults=faults)["x"].train) == 1
    assert [f.line for f in faults.found] == [3]


def test_a_line_that_is_no_object_is_told(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('3\n{"input": "a", "targets": "b"}\n')
    with pytest.raises(DataError, match=r":1: expected a JSON object, got 3"):
        load_tasks(path)


def test_a_broken_parquet_file_is_told(tmp_path: Path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        load_tasks(path)


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "x.parquet", [{"input": "a", "targets": "b"}])
    real = builtins.__import__

    def without_pyarrow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(DataError, match="need the package pyarrow: pip install pyarrow"):
        load_tasks(path)


def test_a_column_that_there_is_not_is_refused(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", [{"question": "q", "targets": "a"}])
    with pytest.raises(ConfigError, match=r"unknown column 'inptu' in the column map: did you mean 'input'"):
        load_tasks(path, column_map={"inptu": "question"})


def test_labels_that_nothing_but_another_split_speaks_of(tmp_path: Path) -> None:
    """Made of targets they are untaught; given as choices, or drawn for evaluation from rows without a split, they are classes."""

    def rows(split: str, *targets: str, **more: object) -> list[dict[str, object]]:
        return [{"input": f"{split} {i}", "targets": t, "split": split, **more} for i, t in enumerate(targets)]

    def read(*parts: list[dict[str, object]]) -> Task:
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for part in parts for row in part))
        return load_tasks(tmp_path / "x.jsonl")["x"]

    train, odd = rows("train", *"ab" * 20), rows("test", *"abc")
    task = read(train, odd)
    assert (task.choices, dict(task.untaught)) == (("a", "b", "c"), {"test": ("c",)})
    task = read(train, rows("validation", *"abcd"), rows("test", *"ab"))
    assert (task.choices, dict(task.untaught)) == (("a", "b"), {"validation": ("c", "d")})
    assert {e.targets[0] for e in task.validation} == {"a", "b"}
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (*train, *odd, *rows("test", *"ab" * 40)))
    )
    for most in (1, 5, 100):  # whichever of its examples are drawn
        assert load_tasks(tmp_path / "x.jsonl", limit_test=most)["x"].untaught == {"test": ("c",)}
    assert read([{**row, "choices": ["a", "b", "c"]} for row in (*train, *odd)]).untaught == {}
    assert read([{key: row[key] for key in ("input", "targets")} for row in (*train, *odd)]).untaught == {}
    assert read(rows("test", *"abc" * 10)).untaught == {}


def test_validation_examples_that_are_left_out_are_told(tmp_path: Path) -> None:
    parts = {"train": "ab" * 20, "validation": "abcd", "test": "ab"}
    lines = [
        json.dumps({"input": f"{s} {i}", "targets": t, "split": s}) for s, ts in parts.items() for i, t in enumerate(ts)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    notes = load_tasks(tmp_path / "x.jsonl").notes
    assert "x (2): validation examples with a label that no other split has were left out" in notes
