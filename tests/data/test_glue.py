"""The nine tasks of GLUE in their own layout, as JSONL and as datasets: one and the same tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mhr
from mhr.data import Example, TaskCollection
from mhr.data.check import check_collection
from mhr.data.forms.glue import GLUE, glue_name
from mhr.data.splits import part_of
from mhr.errors import DataError
from tests.glue import FOLDERS, ROWS, TRAIN, rows_of, save_dataset, write_glue, write_jsonl

METRICS = {
    "cola": ("matthews", "accuracy"),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "mnli": ("accuracy_matched", "accuracy_mismatched"),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("own") / "glue")


def seen(examples: list[Example]) -> set[tuple[str, str, str]]:
    return {(e.input, e.targets[0], e.part) for e in examples}


def check(tasks: TaskCollection, prefix: str = "") -> None:
    """That a collection holds the rows of ours, each in its split."""
    assert len(tasks) == 9
    for name, task in GLUE.items():
        found, rows = tasks[prefix + name], rows_of(name)
        texts = [" ".join([name, *(f"{c}: {row[c]}" for c in task.texts)]) for row in rows]
        targets = [task.labels[row["label"]] if task.labels else str(row["label"]) for row in rows]
        assert [(e.input, e.targets) for e in found.train] == [
            (text, (target,)) for text, target in zip(texts[:TRAIN], targets[:TRAIN], strict=True)
        ]
        parts = ["matched", "mismatched"] * 2 if name == "mnli" else [""] * 4
        assert seen(found.test) == set(zip(texts[TRAIN:], targets[TRAIN:], parts, strict=True))
        assert len(found.test) == 4
        assert found.choices == task.labels
        assert {e.choices for e in [*found.train, *found.test]} == {task.labels}
        assert found.metrics == METRICS[name]


def test_the_layout_of_glue_itself(own: Path) -> None:
    tasks = mhr.load_tasks(own)
    check(tasks)
    assert list(tasks) == list(GLUE)
    assert len(tasks.recognised) == 19
    assert any("the labels of test files are withheld" in note for note in tasks.notes)
    assert not any("judged on together" in note for note in tasks.notes)
    assert check_collection(own).ok


@pytest.mark.parametrize("names", [True, False], ids=["labels by name", "labels by index"])
def test_jsonl_with_the_columns_of_the_datasets(names: bool, tmp_path: Path) -> None:
    check(mhr.load_tasks(write_jsonl(tmp_path / "rows", names=names)))


def test_datasets(tmp_path: Path) -> None:
    tasks = [mhr.load_tasks(save_dataset(tmp_path, name)) for name in GLUE]
    check(TaskCollection([task for one in tasks for task in one.values()]), "glue-")
    assert all(any("withheld" in note for note in one.notes) for one in tasks)


def test_names_of_labels_in_a_dataset_stand_above_ours(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    rows = [{"sentence": f"film {i}", "label": i % 2} for i in range(4)]
    datasets.Dataset.from_list(rows, features).save_to_disk(tmp_path / "sst2")
    task = mhr.load_tasks(tmp_path / "sst2", limit_test=0)["sst2"]
    assert [e.targets for e in task.train] == [("good",), ("bad",)] * 2
    assert task.choices == ("good", "bad")


def test_one_task_and_one_file_of_it(own: Path, tmp_path: Path) -> None:
    task = mhr.load_tasks(own / "CoLA")["cola"]
    assert (len(task.train), len(task.test)) == (6, 4)
    assert len(mhr.load_tasks(own / "QNLI" / "dev.tsv")["qnli"].test) == 4
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text('a\t1\t\tHe said "no.\r\nb\t0\t*\tNo said he "".\r\n')
    assert [e.input for e in mhr.load_tasks(tmp_path)["cola"].train] == [
        'cola sentence: He said "no.',
        'cola sentence: No said he "".',
    ]


def test_the_packaged_words_fit(own: Path) -> None:
    tasks = mhr.load_tasks(own, template="glue")
    assert tasks["cola"].train[1].input == "The kettle whistle all mornings the. This is"
    assert tasks["cola"].train[1].targets == ("incorrect",)
    assert tasks["mnli"].train[0].input.startswith("She cycled to the market at dawn. Somebody rode a bicycle.")
    assert tasks["mnli"].choices == ("Yes", "Maybe", "No")
    assert tasks["stsb"].train[1].targets == ("4.2",)
    assert {name: task.metrics for name, task in tasks.items()} == METRICS


def test_other_files_of_those_folders_are_read_as_ever(tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").write_text("input\ttargets\nis it?\tyes\n")
    (task,) = mhr.load_tasks(tmp_path).values()
    assert task.train[0].input == "is it?"
    assert task.metrics == ()


def test_what_lies_beside_is_told(own: Path, tmp_path: Path) -> None:
    write_glue(tmp_path / "glue")
    (tmp_path / "glue" / "diagnostic").mkdir()
    assert "what is none of GLUE's tasks was left out: diagnostic" in mhr.load_tasks(tmp_path / "glue").notes
    (tmp_path / "glue" / "CoLA").rename(tmp_path / "glue" / "cola")
    (tmp_path / "glue" / "SST-2").rename(tmp_path / "glue" / "sst2")
    assert len(mhr.load_tasks(tmp_path / "glue")) == 9


def test_test_files_with_labels_are_judged_on(tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "glue") / "RTE"
    (folder / "test.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n")
    task = mhr.load_tasks(folder)["rte"]
    assert [e.targets for e in task.test] == [("entailment",)]
    assert len(task.validation) == 4


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("SST-2/dev.tsv", "sentence\tlabel\nfine\t2\n", r"dev.tsv:2: row 'dev.tsv:2' has the label '2', which is not among"),
        ("SST-2/dev.tsv", "sentence\tlabel\nfine\t1\tmore\n", r"dev.tsv:2: the row has 3 cells, and the first line 2"),
        ("SST-2/dev.tsv", "text\tlabel\nfine\t1\n", r"dev.tsv:1: the first line names no columns of sst2: expected sentence, label"),
        ("SST-2/dev.tsv", "sentence\tlabel\n \t1\n", r"dev.tsv:2: .* has no text in 'sentence'"),
    ],
)  # fmt: skip
def test_faults(file: str, text: str, message: str, tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "glue")
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=message):
        mhr.load_tasks(folder)


def test_similarities_that_are_no_numbers(tmp_path: Path) -> None:
    row = {"sentence1": "a", "sentence2": "b", "label": "alike"}
    (tmp_path / "stsb.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="stsb.jsonl:1: .* has the label 'alike', expected a number"):
        mhr.load_tasks(tmp_path / "stsb.jsonl")


def test_repeated_similarities_are_no_choices(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a {i}", "sentence2": "b", "label": float(i % 5)} for i in range(100)]
    (tmp_path / "stsb.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = mhr.load_tasks(tmp_path / "stsb.jsonl")["stsb"]
    assert task.choices == ()
    assert {e.targets[0] for e in task.train} == {"0.0", "1.0", "2.0", "3.0", "4.0"}


def test_labels_that_annotators_did_not_agree_on_are_left_out(tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": f"b {i}", "label": label} for i, label in enumerate(["neutral", "-"])]
    (tmp_path / "mnli_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = mhr.load_tasks(tmp_path / "mnli_train.jsonl")
    assert len(tasks["mnli"].train) == 1
    assert "mnli (1): rows whose answer is empty were left out" in tasks.notes


def test_names() -> None:
    assert [glue_name(n) for n in ("SST-2", "glue-stsb", "STS-B", "my_rte_16", "glue")] == [
        "sst2",
        "stsb",
        "stsb",
        "rte",
        None,
    ]
    assert glue_name("start") is None
    assert glue_name("mnli-qnli") is None
    assert [part_of(n) for n in ("validation_matched", "dev_mismatched.tsv", "dev", "unmatched")] == [
        *("matched", "mismatched", "", "")
    ]
    assert part_of("dev", "mnli_mismatched") == "mismatched"


def test_the_collection_has_ten_rows_a_task() -> None:
    assert {len(rows) for rows in ROWS.values()} == {10}
    assert ROWS.keys() == FOLDERS.keys() == GLUE.keys()
