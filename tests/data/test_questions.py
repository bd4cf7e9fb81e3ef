"""Rows that ask: all of them in their order, with and without answers, by the columns, forms and templates of a collection."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mhr.data import load_tasks
from mhr.data.questions import ask_texts, read_questions
from mhr.data.reading import ReadOptions
from mhr.data.templates import read_templates
from mhr.errors import ConfigError, DataError
from mhr_cli.frame.settings import READING

OPTIONS = ReadOptions()


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_all_rows_come_in_their_order_with_their_tasks(tmp_path: Path) -> None:
    rows = [{"input": f"q{i}", "task": "ab"[i % 2], "id": f"row-{i}"} for i in range(300)]
    asked = read_questions(write(tmp_path / "rows.jsonl", *rows), OPTIONS)
    assert [(e.id, e.input, e.task) for e in asked] == [(r["id"], r["input"], r["task"]) for r in rows]


def test_rows_with_and_without_answers_ask_the_same(tmp_path: Path) -> None:
    answered = {"input": "is it?", "targets": "yes", "choices": ["no", "yes"], "split": "test"}
    asked = read_questions(
        write(tmp_path / "rows.jsonl", answered, {"input": "is it?", "choices": ["no", "yes"]}), OPTIONS
    )
    assert asked[0].input == asked[1].input
    assert asked[0].choices == asked[1].choices == ("no", "yes")
    assert {e.targets for e in asked} == {("no",)}, "the first choice, whatever the answer is"


def test_a_task_is_that_of_the_row_or_the_default(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"input": "a"}, {"input": "b", "task": "other"})
    assert [e.task for e in read_questions(file, OPTIONS)] == ["", "other"]
    assert [e.task for e in read_questions(file, OPTIONS, "mine")] == ["mine", "other"]
    with pytest.raises(DataError, match=r"rows.jsonl:2: .*is of task 'other', but all are asked for as 'mine'"):
        read_questions(file, OPTIONS, "mine", only=True)


def test_choices_are_those_of_the_row_or_the_ones_given(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"input": "a"}, {"input": "b", "choices": ["x", "y"]})
    assert [e.choices for e in read_questions(file, OPTIONS, choices=["p", "q"])] == [("p", "q"), ("x", "y")]


USER = {"role": "user", "content": "hello"}
FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER]},
    "sharegpt": {"conversations": [{"from": "human", "value": "hello"}]},
    "alpaca": {"instruction": "hello", "input": ""},
    "completion": {"prompt": "hello"},
    "turns as a prompt": {"prompt": [USER]},
    "plain": {"input": "hello"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_may_lack_its_answer(tmp_path: Path, form: str) -> None:
    (asked,) = read_questions(write(tmp_path / "rows.jsonl", FORMS[form]), OPTIONS)
    assert asked.input == "hello"
    assert [m["role"] for m in asked.messages[:-1]] in ([], ["user"])


ANSWERED: list[dict[str, Any]] = [
    {"input": "asked", "targets": "a"},
    {"input": "asked", "targets": "a", "prompt": "an id"},
    {"input": "asked", "targets": "a", "instruction": "another"},
    {"instruction": "do", "input": "this", "output": "a"},
    {"instruction": "do", "output": "a"},
    {"prompt": "asked", "completion": "a"},
    {"prompt": "asked", "completion": "a", "input": "another"},
    {"prompt": "asked", "chosen": "a", "rejected": "b"},
    {"messages": [USER, {"role": "assistant", "content": "a"}]},
]


@pytest.mark.parametrize("row", ANSWERED, ids=lambda row: "-".join(row))
def test_a_row_is_asked_what_it_is_trained_on(tmp_path: Path, row: dict[str, Any]) -> None:
    """Whatever its answer is, and without it, unless that is refused because it would be something else."""
    (trained,) = load_tasks(write(tmp_path / "t.jsonl", row))["t"].train
    (asked,) = read_questions(write(tmp_path / "a.jsonl", row), OPTIONS)
    assert (asked.input, asked.messages[:-1]) == (trained.input, trained.messages[:-1])
    answer = {"targets", "output", "completion"} & row.keys()
    if not answer:
        return
    left = {name: value for name, value in row.items() if name not in answer}
    file = write(tmp_path / "b.jsonl", left)
    if {"input", "prompt"} <= left.keys():
        with pytest.raises(DataError, match=r"b.jsonl:1: row \S+ has both input and prompt: leave out"):
            read_questions(file, OPTIONS)
    elif {"instruction", "input"} <= left.keys() and "targets" in row:
        assert (
            read_questions(file, OPTIONS)[0].input == "another\n\nasked"
        )  # an Alpaca row, whose input is part of the question
    else:
        assert read_questions(file, OPTIONS)[0].input == trained.input


def test_a_conversation_is_asked_for_what_follows_or_for_its_last_answer(tmp_path: Path) -> None:
    answered = [USER, {"role": "assistant", "content": "hi"}]
    going_on = [*answered, {"role": "user", "content": "again"}]
    asked = read_questions(write(tmp_path / "c.jsonl", {"messages": answered}, {"messages": going_on}), OPTIONS)
    assert [e.messages[:-1] for e in asked] == [(USER,), tuple(going_on)]
    (evaluated,) = load_tasks(write(tmp_path / "e.jsonl", {"messages": answered}))["e"].train
    assert evaluated.input == asked[0].input
    assert evaluated.messages[:-1] == asked[0].messages[:-1]


def test_columns_and_templates_are_those_of_a_collection(tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text("input: '{input} ({task}) It was'\nverbalizers: {'0': bad, '1': good}\n")
    options = ReadOptions(column_map={"input": "text"}, templates=read_templates(str(words)))
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([["text", "task"], ["fine", "sst2"]])
    (asked,) = read_questions(file, options)
    assert (asked.input, asked.choices) == ("fine (sst2) It was", ("bad", "good"))
    (text,) = ask_texts(["fine"], options, "sst2")
    assert (text.input, text.choices) == (asked.input, asked.choices)
    (ranked,) = ask_texts(["fine"], options, "sst2", choices=["1", "0"])
    assert ranked.choices == ("good", "bad")
    other = tmp_path / "other.yaml"
    other.write_text("input: '{premise} {hypothesis}'\n")
    with pytest.raises(ConfigError, match="unknown field {premise}"):
        ask_texts(["fine"], ReadOptions(templates=read_templates(str(other))))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "x"}, "row 'x' has no column 'input'"),
        ({"input": "  "}, "has no input: expected a string that is not empty"),
        ({"input": 3.5}, "has no input"),
        ({"input": "a", "choices": ["b", "b"]}, "has the only choice 'b'"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "unknown role 'robot'"),
    ],
)
def test_a_faulty_row_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    first = {"messages": [USER]} if "messages" in row else {"input": "fine"}
    with pytest.raises(DataError, match="rows.jsonl:2: ") as error:
        read_questions(write(tmp_path / "rows.jsonl", first, row), OPTIONS)
    assert said in str(error.value)


def test_what_holds_no_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "rows.txt").write_text("a\n")
    for name, said in (
        ("absent", "no such file"),
        ("rows.txt", "cannot tell the format"),
        ("rows.jsonl", "holds no rows"),
    ):
        with pytest.raises(DataError, match=said):
            read_questions(tmp_path / name, OPTIONS)
    with pytest.raises(DataError, match="text 2 is empty"):
        ask_texts(["a", " "], OPTIONS)


def test_every_setting_of_reading_is_heeded_or_of_collections_alone() -> None:
    """A setting that puts rows into other words belongs into `mhr.prediction.load` too, or prompts would not be those of training."""
    heeded = {"data.column_map", "data.template", "data.prompt", "data.verbalizers"}
    of_collections = {
        "data.definitions",
        "data.definition_form",
        "data.positives",
        "data.on_bad_row",
        "data.split_list",
        "data.subset",
        "data.max_test",
    }
    assert set(READING) == heeded | of_collections
