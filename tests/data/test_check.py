from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhr.data.check import check_collection
from mhr.errors import DataError
from tests.data.conftest import SuperNI, instances


def test_a_sound_collection(superni: SuperNI):
    root = superni({"a": instances(120), "b": instances(30)}, ["a"], ["b"])
    report = check_collection(root, definitions=False, count_tokens=lambda text: len(text.split()))
    assert report.ok
    assert report.reader == "superni"
    assert report.totals == {
        "tasks": 2,
        "training_tasks": 1,
        "held_out_tasks": 1,
        "train_examples": 20,
        "test_examples": 130,
        "duplicates": 0,
        "duplicates_between": 0,
        "faults": 0,
    }
    task = report.tasks[0]
    assert (task.name, task.train, task.test, task.choices) == ("a", 20, 100, 2)
    assert task.labels == {"yes": 60, "no": 60}
    assert task.input_chars.max == len("question 119")
    assert task.input_tokens is not None
    assert task.input_tokens.median == 2
    assert json.loads(json.dumps(report.to_dict()))["totals"] == report.totals


def test_duplicates_within_and_between_splits(tmp_path: Path):
    rows = [("train", "p"), ("train", "p"), ("train", "q"), ("test", "q"), ("test", "r"), ("test", "r"), ("test", "r")]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"input": i, "targets": "t", "split": s}) + "\n" for s, i in rows))
    task = check_collection(path).tasks[0]
    assert (task.duplicates_train, task.duplicates_test, task.duplicates_between) == (1, 2, 1)


def test_every_fault_is_found(superni: SuperNI):
    content = instances(5)
    del content[0]["output"]
    del content[4]["input"]
    root = superni({"a": content, "b": instances(2)}, ["a", "b", "missing", "a"])
    report = check_collection(root)
    assert not report.ok
    assert [(Path(f.file).name, f.message.split(":")[0]) for f in report.faults] == [
        ("train_tasks.txt", "task 'missing' has no file tasks/missing.json"),
        ("train_tasks.txt", "task 'a' is listed twice, first at train_tasks.txt"),
        ("a.json", "instance 'x-0' has no output"),
        ("a.json", "instance 'x-4' has no input"),
    ]
    assert all(f.line for f in report.faults)
    assert [t.name for t in report.tasks] == ["a", "b"]


def test_a_step_that_cannot_go_on_is_a_fault_too(tmp_path: Path):
    (tmp_path / "dataset_info.json").touch()
    report = check_collection(tmp_path)
    assert report.totals["faults"] == 1
    assert report.faults[0].message.startswith("cannot be loaded as a Hugging Face dataset")


def test_nothing_to_look_at_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="is an empty folder"):
        check_collection(tmp_path)
