"""Labels as strings, integers, booleans and digits, alone and among choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mhr.data import load_tasks
from mhr.errors import DataError


def read(tmp_path: Path, *rows: tuple[Any, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """(targets, choices) of rows as they are read."""
    path = tmp_path / "x_train.jsonl"
    made = [
        {"input": f"q{i}", "targets": t} | ({"choices": c} if c is not None else {}) for i, (t, c) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return [(e.targets[0], e.choices) for e in load_tasks(path)["x"].train]


@pytest.mark.parametrize(
    ("value", "choices", "expected"),
    [
        ("yes", None, "yes"),
        (3, None, "3"),
        (-2, None, "-2"),
        (True, None, "true"),
        (1, ["no", "yes"], "yes"),
        ("1", ["no", "yes"], "yes"),
        (True, ["true", "false"], "true"),
        (True, ["False", "True"], "True"),
        (False, [True, False], "false"),
        (2, [1, 2, 3], "2"),
        (1, ["0", "4", "2", "6"], "4"),
        ("4", ["0", "4", "2", "6"], "4"),
        ("B", {"text": ["red", "blue"], "label": ["A", "B"]}, "blue"),
        (2, {"text": ["red", "blue"], "label": [1, 2]}, "blue"),
        ("x", '["x", "y"]', "x"),
    ],
)
def test_a_label_is_read_as_it_is_meant(tmp_path: Path, value: Any, choices: Any, expected: str) -> None:
    ((found, offered),) = read(tmp_path, (value, choices))
    assert found == expected
    assert not offered or found in offered


@pytest.mark.parametrize(
    ("value", "choices", "said"),
    [
        (True, ["no", "yes"], "target true is none of the choices 'no', 'yes'"),
        (5, [1, 2, 3], "target 5 is none of the choices '1', '2', '3', which are integers themselves"),
        (2, ["no", "yes"], "target 2 is no index of a choice: expected 0 to 1"),
        ("2", ["no", "yes"], "label '2', which is not among the choices"),
        (1.5, None, "target 1.5 is neither a string nor an integer"),
        ("x", ["x"], "has the only choice 'x', so that any answer is right"),
        ("x", ["x", "x"], "has the only choice 'x'"),
        (0, ["x"], "has the only choice 'x'"),
        ({"a": 1}, None, "targets must be a list of strings"),
        ([1.5], None, "targets must be a list of strings"),
        ("x", "x|y", "choices must be a list of strings"),
        ("x", [], "choices must be a list of strings"),
        ("x", ["x", None], "choices must be a list of strings"),
    ],
)
def test_what_is_no_label_is_told(tmp_path: Path, value: Any, choices: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"x_train.jsonl:1: .*{said}"):
        read(tmp_path, (value, choices))


def test_digits_that_are_now_a_choice_and_now_its_number_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r":2: .*target '1' is a choice here, and digits were indices of choices before"
    ):
        read(tmp_path, ("1", ["no", "yes"]), ("1", ["1", "2"]))
    with pytest.raises(DataError, match=r":2: .*target '1' is the number of a choice here"):
        read(tmp_path, ("1", ["1", "2"]), ("1", ["no", "yes"]))


def test_labels_of_a_task_without_choices_are_its_label_set(tmp_path: Path) -> None:
    for labels in ((0, 1), ("0", "1"), (False, True)):
        found = read(tmp_path, *[(labels[i % 2], None) for i in range(20)])
        expected = tuple(str(label).lower() for label in labels)
        assert found == [(expected[i % 2], expected) for i in range(20)]
