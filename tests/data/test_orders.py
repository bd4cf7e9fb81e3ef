"""The built-in instruction tasks."""

from __future__ import annotations

import json

import pytest

from mhr.data import load_tasks
from mhr.data.orders import FIELDS, HELD_OUT, LABELS, STYLES, orders_suite
from mhr.errors import ConfigError


def test_every_field_and_style_of_a_task_held_out_is_taught_by_others():
    tasks = load_tasks("builtin:orders")
    assert set(tasks.held_out()) == set(HELD_OUT)
    assert len(tasks) == len(FIELDS) * len(STYLES) + len(LABELS)
    taught = [name.split("-") for name in tasks.training()]
    for field, style in (name.split("-") for name in HELD_OUT):
        assert sum(parts[0] == field for parts in taught) >= 3
        assert sum(parts[-1] == style for parts in taught) >= 3


def test_the_answer_is_in_the_message_and_written_in_the_style():
    tasks = load_tasks("builtin:orders")
    for example in tasks["city-record"].test:
        assert json.loads(example.targets[0])["city"] in example.input
    for example in tasks["date-tag"].test:
        assert example.targets[0][6:-1].lower() in example.input.lower()
    for name, labels in LABELS.items():
        assert tasks[name].choices == labels
        assert {e.targets[0] for e in tasks[name].train} == set(labels)


def test_rows_are_conversations_that_are_drawn_once():
    tasks = orders_suite(seed=3, train_per_task=30, test_per_task=20)
    for task in tasks.values():
        assert (len(task.train), len(task.test)) == (30, 20)
        inputs = [example.input for example in (*task.train, *task.test)]
        assert len(set(inputs)) == len(inputs)
        for example in task.train:
            user, assistant = example.messages
            assert (user["role"], user["content"]) == ("user", example.input)
            assert (assistant["role"], assistant["content"]) == ("assistant", example.targets[0])
    again = orders_suite(seed=3, train_per_task=30, test_per_task=20)
    assert [e.input for e in again["topic"].train] == [e.input for e in tasks["topic"].train]
    assert [e.input for e in orders_suite(seed=4)["topic"].train][:30] != [e.input for e in tasks["topic"].train]


def test_a_built_in_collection_that_there_is_not():
    with pytest.raises(ConfigError, match="did you mean 'builtin:orders'"):
        load_tasks("builtin:order")
