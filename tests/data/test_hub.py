from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import datasets
import pytest

from mhr.data import load_tasks
from mhr.errors import DataError

COLUMNS = {"input": "text", "targets": "label"}


def table(labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    return datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(len(labels))], "label": labels}, features)


def test_splits_and_class_labels(tmp_path: Path):
    splits = {"train": table([0, 1, 1]), "validation": table([1, 0]), "test": table([-1, -1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "reviews")
    tasks = load_tasks(tmp_path / "reviews", column_map=COLUMNS)
    task = tasks["reviews"]
    assert [e.targets[0] for e in task.train] == ["neg", "pos", "pos"]
    assert sorted(e.targets[0] for e in task.test) == ["neg", "pos"]
    assert task.choices == ("neg", "pos")
    assert tasks.notes == ["reviews: the labels of split 'test' are withheld, so it was left out"]


def test_splits_under_the_names_people_have(tmp_path: Path):
    names = ("train_r1", "train_r2", "dev_r1", "unsupervised", "test_r1")
    splits = {name: table([0, 1] if name != "unsupervised" else [-1, -1]) for name in names}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "anli")
    tasks = load_tasks(tmp_path / "anli", column_map=COLUMNS)
    assert (len(tasks["anli"].train), len(tasks["anli"].test)) == (4, 2)
    assert tasks.notes == [
        "splits whose names tell neither training, validation nor test were left out: unsupervised",
        "anli: splits train_r1, train_r2 are trained on together",
        "anli (2): validation examples are not judged on, since there is a test split",
    ]
    datasets.DatasetDict({"easy": table([0]), "hard": table([1])}).save_to_disk(tmp_path / "levels")
    with pytest.raises(DataError, match="cannot tell what its splits 'easy', 'hard' are for"):
        load_tasks(tmp_path / "levels", column_map=COLUMNS)
    datasets.DatasetDict({"all": table([0, 1] * 10)}).save_to_disk(tmp_path / "one")
    assert len(load_tasks(tmp_path / "one", column_map=COLUMNS)["one"].test) == 4


def test_one_table_with_a_task_column(tmp_path: Path):
    rows = [{"q": f"{s} {i}", "a": "x", "subject": s} for s in ("law", "art") for i in range(5)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "exams")
    tasks = load_tasks(tmp_path / "exams", column_map={"input": "q", "targets": "a", "task": "subject"})
    assert list(tasks) == ["law", "art"]


def test_a_faulty_row_is_told_with_its_split_and_number(tmp_path: Path):
    datasets.DatasetDict({"train": table([0, 1]), "test": table([1, -1])}).save_to_disk(tmp_path / "reviews")
    with pytest.raises(DataError, match=r"reviews\[test\]:2: .*target -1 is no index of a choice"):
        load_tasks(tmp_path / "reviews", column_map=COLUMNS)


def test_a_column_that_is_missing_is_told(tmp_path: Path):
    table([0, 1]).save_to_disk(tmp_path / "reviews")
    with pytest.raises(DataError, match=r"has no column 'input': it has text, label"):
        load_tasks(tmp_path / "reviews")


def test_a_hub_id_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"^nobody/nothing: cannot be loaded as a Hugging Face dataset: no route$"):
        load_tasks("nobody/nothing")


def test_a_hub_id_with_a_subset(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(*args: Any) -> datasets.DatasetDict:
        asked.append(args)
        return datasets.DatasetDict({"train": table([0, 1])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(load_tasks("nyu-mll/glue", subset="sst2", column_map=COLUMNS)) == ["glue-sst2"]
    assert asked == [("nyu-mll/glue", "sst2")]


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without_datasets(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(DataError, match="needs the package datasets: pip install datasets"):
        load_tasks("nobody/nothing")
