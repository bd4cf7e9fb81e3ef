from __future__ import annotations

import pytest

from mhr.data import Example, Task, TaskCollection
from mhr.errors import DataError, TaskError


def test_collection_keeps_order_and_selects_by_name():
    tasks = TaskCollection([Task("b"), Task("a", held_out=True), Task("c")], "here")
    assert list(tasks) == ["b", "a", "c"]
    assert list(tasks.training()) == ["b", "c"]
    assert list(tasks.held_out()) == ["a"]
    assert list(tasks.select(["c", "a"])) == ["c", "a"]


def test_unknown_and_repeated_names_are_told():
    tasks = TaskCollection([Task("boolq"), Task("rte")], "here")
    with pytest.raises(TaskError, match=r"unknown task 'bolq' in here: did you mean 'boolq'\?"):
        tasks.select(["bolq"])
    with pytest.raises(DataError, match="task 'rte' appears twice"):
        TaskCollection([Task("rte"), Task("rte")])


def test_a_task_has_two_splits():
    example = Example("t", "in", ("out",))
    task = Task("t", train=[example])
    assert task.split("train") == [example]
    assert task.split("test") == []
    with pytest.raises(DataError, match="unknown split 'dev'"):
        task.split("dev")
