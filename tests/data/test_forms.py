"""Rows under the names that the field has for questions and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mhr.data import Example, load_tasks
from mhr.errors import DataError

USER, ANSWER = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}


def read(tmp_path: Path, row: dict[str, Any], **options: Any) -> Example:
    path = tmp_path / "x_train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (example,) = load_tasks(path, **options)["x"].train
    return example


@pytest.mark.parametrize(
    ("row", "text", "target"),
    [
        ({"messages": [USER, ANSWER]}, "why?", "so."),
        ({"messages": [{"role": "system", "content": "Be short."}, USER, ANSWER]}, "Be short.\n\nwhy?", "so."),
        (
            {"messages": [USER, ANSWER, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "no."}]},
            "User: why?\nAssistant: so.\nUser: and?\nAssistant:",
            "no.",
        ),
        ({"messages": [USER, ANSWER, USER]}, "why?", "so."),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "why?"}]}, ANSWER]}, "why?", "so."),
        ({"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so."}]}, "why?", "so."),
        (
            {"system": "Be short.", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "Be short.\n\na",
            "b",
        ),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2", "3"),
        ({"instruction": "Sing.", "input": "", "output": "la"}, "Sing.", "la"),
        ({"prompt": "a", "completion": "b"}, "a", "b"),
        ({"prompt": [USER], "completion": [ANSWER]}, "why?", "so."),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a", "b"),
        ({"prompt": "why?", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "why?", "so."),
        ({"input": "a", "targets": "b", "prompt": "c", "completion": "d"}, "a", "b"),
    ],
)
def test_every_form_is_a_question_and_an_answer(tmp_path: Path, row: dict[str, Any], text: str, target: str) -> None:
    example = read(tmp_path, row)
    assert (example.input, example.targets) == (text, (target,))


def test_a_conversation_keeps_its_turns(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, USER, {**ANSWER, "name": "bot"}]
    assert read(tmp_path, {"messages": turns}).messages == tuple(turns)
    sharegpt = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so."}]
    assert read(tmp_path, {"conversations": sharegpt}).messages == (USER, ANSWER)
    assert read(tmp_path, {"input": "a", "targets": "b"}).messages == ()


def test_tools_beside_a_conversation_are_kept(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    sharegpt = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so."}]
    for row in ({"messages": [USER, ANSWER]}, {"conversations": sharegpt}):
        for written in (tools, json.dumps(tools)):
            example = read(tmp_path, {**row, "tools": written})
            assert example.tools == tuple(tools)
            assert example.input == f"Tools: {json.dumps(tools)}\n\nwhy?"  # where no template renders it
        for nothing in (None, [], "", "[]"):
            assert read(tmp_path, {**row, "tools": nothing}).tools == ()
        for wrong in ("look", ["look"], {"name": "look"}, 3):
            with pytest.raises(DataError, match="x_train.jsonl:1: .* has tools that are no list of objects"):
                read(tmp_path, {**row, "tools": wrong})
        with pytest.raises(DataError, match="has functions, which chat templates do not read: write them as tools"):
            read(tmp_path, {**row, "functions": [{"name": "look"}]})


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([], "the conversation is empty"),
        ([USER], "has no assistant turn"),
        ([ANSWER], "has no user turn before the assistant's"),
        ([USER, ANSWER, ANSWER], "turns 2 and 3 are both the assistant's"),
        (
            [USER, {"role": "asistant", "content": "so."}],
            "turn 2 has the unknown role 'asistant': did you mean 'assistant'",
        ),
        ([USER, {"role": "assistant", "content": 3}], "turn 2 has no content: expected a string, got 3"),
        ([USER, "so."], "turn 2 is 'so.': expected an object with a role"),
        ([USER, {"role": "system", "content": "s"}, ANSWER], "turn 2 is a system turn: expected it first"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "turn 1 has parts that are no text"),
        ([USER, {"role": "assistant", "content": "\ud83d"}], "holds half of a surrogate pair"),
    ],
)
def test_what_is_no_conversation_is_told(tmp_path: Path, turns: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=f"x_train.jsonl:1: .*{said}"):
        read(tmp_path, {"messages": turns})


def test_nested_columns_are_named_by_dots(tmp_path: Path) -> None:
    row = {"translation": {"de": "eins", "en": "one"}, "answers": {"text": ["x", "y"]}, "a.b": "dotted"}
    columns = {"input": "translation.de", "targets": "translation.en"}
    assert read(tmp_path, row, column_map=columns).targets == ("one",)
    assert read(tmp_path, row, column_map={"input": "a.b", "targets": "answers"}).targets == ("x", "y")
    assert read(tmp_path, row, column_map={"input": "a.b", "targets": "answers.text.1"}).targets == ("y",)
    with pytest.raises(DataError, match=r"no column 'translation.dee': .*did you mean 'translation.de'"):
        read(tmp_path, row, column_map={"input": "translation.dee", "targets": "a.b"})
