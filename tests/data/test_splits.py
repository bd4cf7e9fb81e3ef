"""Names of splits and of files, as people write them."""

from __future__ import annotations

import pytest

from mhr.data.splits import read_name, split_of


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train training TRAIN train_r1 train_sft train-clean auxiliary_train"),
        ("validation", "validation validation_matched validation_mismatched dev dev_r1 val valid eval evaluation"),
        ("test", "test test_sft test_final test-mismatched heldout"),
        (None, "unsupervised tset latest trainer devil train_val test_train"),
    ],
)
def test_names_of_splits(split: str | None, names: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize(
    ("stem", "task", "split"),
    [
        ("train-00000-of-00001", "", "train"),
        ("train-00000-of-00001-0123456789abcdef", "", "train"),
        ("validation_matched-00000-of-00001", "", "validation"),
        ("test_final", "", "test"),
        ("train_r3", "", "train"),
        ("train_sft", "", "train"),
        ("eval", "", "validation"),
        ("my_task_train", "my_task", "train"),
        ("my-task.TEST", "my-task", "test"),
        ("train_sst2", "sst2", "train"),
        ("glue_test_sst2", "glue_sst2", "test"),
        ("my_task_train_0", "my_task", "train"),
        ("my_task_train-00001-of-00004", "my_task", "train"),
        ("0000", "", ""),
        ("part-00003", "", ""),
        ("my_task-00001-of-00002", "my_task", ""),
        ("gsm8k", "gsm8k", ""),
        ("task1234", "task1234", ""),
        ("level_1", "level_1", ""),
        ("latest", "latest", ""),
    ],
)
def test_names_of_files(stem: str, task: str, split: str) -> None:
    named = read_name(stem)
    assert (named.task, named.split) == (task, split)


@pytest.mark.parametrize("stem", ["train_val", "test-train", "x_train_dev"])
def test_a_name_of_several_splits_tells_none(stem: str) -> None:
    with pytest.raises(ValueError, match=stem):
        read_name(stem)
