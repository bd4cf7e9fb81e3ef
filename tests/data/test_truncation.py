from __future__ import annotations

import json

from mhr.data.truncation import Truncation, truncation_line


def test_counts_are_told_by_task_and_part_and_add_up_over_processes():
    one, other = Truncation(), Truncation()
    one.note("inputs", ["a", "b", "a"], [True, False, False])
    one.note("targets", ["b"], [False])
    other.note("inputs", ["a", "b"], [True, True])
    one.add(other)
    assert one.describe() == {
        "cut": 3,
        "of": 6,
        "tasks": {"a": {"inputs": {"cut": 2, "of": 3}}, "b": {"inputs": {"cut": 1, "of": 2}}},
    }
    assert truncation_line(one.describe()) == "truncated 3 of 6 texts (a 2, b 1)"


def test_nothing_truncated_is_not_worth_a_line():
    none = Truncation()
    none.note("inputs", ["a"], [False])
    assert truncation_line(none.describe()) is None


def test_the_worst_tasks_are_named():
    many = Truncation()
    for number, task in enumerate("abcde"):
        many.note("targets", [task] * (number + 1), [True] * (number + 1))
    assert truncation_line(many.describe()) == "truncated 15 of 15 texts (e 5, d 4, c 3, ...)"


def test_runs_of_the_first_release_have_totals_only():
    assert truncation_line({"cut": 2, "of": 8}) == "truncated 2 of 8 texts"


def test_counts_are_stored_whole() -> None:
    counts = Truncation()
    counts.note("inputs", ["a", "b", "a"], [True, False, False])
    counts.masked["a"] += 2
    counts.last_only["b"] += 1
    again = Truncation.from_json(json.loads(json.dumps(counts.to_json())))
    assert again.to_json() == counts.to_json()
    assert again.describe() == counts.describe()
    assert again.describe()["masked"] == {"a": 2}
