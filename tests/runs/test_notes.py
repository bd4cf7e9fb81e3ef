"""What a reader has to know of a run, in lines."""

from __future__ import annotations

from mhr.runs.notes import notes_of


def test_what_was_left_out_and_skipped_is_said() -> None:
    assert notes_of({}) == notes_of({"left_out": {}, "skipped": []}) == []
    assert notes_of({"left_out": {"a": "it has no choices"}}) == ["task 'a' was left out: it has no choices"]
    described = {"left_out": {"a": "it has no choices", "b": "it is empty"}, "skipped": ["skipped c: it is damaged"]}
    assert notes_of(described) == [
        "task 'a' was left out: it has no choices",
        "task 'b' was left out: it is empty",
        "skipped c: it is damaged",
    ]


def test_tasks_left_out_for_one_reason_are_one_line() -> None:
    assert notes_of({"left_out": dict.fromkeys("abcdef", "it is empty")}) == [
        "6 tasks were left out ('a', 'b', 'c', 'd' and 2 more): it is empty"
    ]
