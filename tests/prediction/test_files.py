"""Answers in a file: each row once, in order, whole, however the process that wrote it has ended."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mhr.data import Example
from mhr.data.chat_format import ChatFormat
from mhr.data.reading import ReadOptions
from mhr.errors import ConfigError, DataError, MhrError, TaskError
from mhr.prediction import Answer, PredictConfig, Predictor, answer_into, files
from tests.prediction.conftest import Predict

CONFIG = PredictConfig(max_new_tokens=4)
EXAMPLES = [Example(("alpha", "beta")[i % 2], f"w{i} w{i + 1}", ("",), id=f"row-{i}") for i in range(10)]


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(files.ROWS_AT_ONCE, "cpu", 3)


@pytest.fixture
def model(predictor: Predict) -> Predictor:
    return predictor("t5")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, model: Predictor, examples: list[Example] = EXAMPLES, **settings: Any) -> Any:
    return answer_into(path, model, examples, settings.pop("config", CONFIG), progress=False, **settings)


def test_a_line_for_each_row_in_order(tmp_path: Path, model: Predictor) -> None:
    done = write(tmp_path / "new" / "out.jsonl", model)
    assert (done.rows, done.kept, done.truncated) == (10, 0, 0)
    rows = read(tmp_path / "new" / "out.jsonl")
    assert [r["id"] for r in rows] == [e.id for e in EXAMPLES]
    assert [r["answer"] for r in rows] == [a.text for a in model.answer(EXAMPLES, CONFIG)]
    assert set(rows[0]) == {"id", "task", "input", "answer", "how"}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["out.jsonl", "out.jsonl.settings.json"]


def test_ranked_rows_keep_their_scores(tmp_path: Path, model: Predictor) -> None:
    ranked = [Example("alpha", "w1", ("w2",), ("w2", "w3"), id="x")]
    write(tmp_path / "out.jsonl", model, ranked, config=PredictConfig())
    (row,) = read(tmp_path / "out.jsonl")
    assert row["choices"] == ["w2", "w3"]
    assert row["answer"] == row["choices"][row["scores"].index(max(row["scores"]))]


def test_a_score_that_is_no_number_is_null() -> None:
    row = files.line_of(EXAMPLES[0], Answer("w2", "ranking", ("w2", "w3"), (-1.0, float("-inf"))))
    assert row["scores"] == [-1.0, None]


def test_what_is_answered_stays_after_an_interrupt_and_is_not_answered_again(
    tmp_path: Path, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.jsonl"
    write(whole, model)
    answered: list[str] = []
    answer = Predictor.answer

    def until_interrupted(self: Predictor, examples: list[Example], *args: Any, **kwargs: Any) -> Any:
        if len(answered) == 6:
            raise KeyboardInterrupt
        answered.extend(e.id for e in examples)
        return answer(self, examples, *args, **kwargs)

    path = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "answer", until_interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"6 of 10 rows are answered in .*out\.jsonl"):
            write(path, model)
    assert [r["id"] for r in read(path)] == answered == [f"row-{i}" for i in range(6)]
    answered.clear()
    monkeypatch.setattr(Predictor, "answer", until_interrupted)
    done = write(path, model, resume=True)
    assert (done.rows, done.kept) == (10, 6)
    assert answered == [f"row-{i}" for i in range(6, 10)]
    assert path.read_bytes() == whole.read_bytes()
    answered.clear()
    assert write(path, model, resume=True).kept == 10
    assert answered == []


@pytest.mark.parametrize("kept", [0, 1, 20, -1])
def test_a_line_that_a_kill_has_cut_is_answered_again(tmp_path: Path, model: Predictor, kept: int) -> None:
    path = tmp_path / "out.jsonl"
    write(path, model)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:kept])
    assert write(path, model, resume=True).kept == 4
    assert path.read_bytes() == whole


@pytest.mark.parametrize("short", [True, False])
def test_a_full_disk_leaves_whole_lines(
    tmp_path: Path, model: Predictor, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """The system may write a part of a line before it says that there is no room."""
    written, put = 0, os.write

    def fill(handle: int, data: bytes) -> int:
        nonlocal written
        written += 1
        if written == 5 and short:
            return put(handle, data[:7])
        if written >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(handle, data)

    path = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("mhr.prediction.files.os.write", fill)
        with pytest.raises(MhrError, match=r"cannot write .*out\.jsonl: No space left on device"):
            write(path, model)
    assert [r["id"] for r in read(path)] == ["row-0", "row-1", "row-2", "row-3"]
    assert write(path, model, resume=True).kept == 4
    assert len(read(path)) == 10


def test_rows_of_another_input_or_model_are_not_resumed(tmp_path: Path, model: Predictor, predictor: Predict) -> None:
    path = tmp_path / "out.jsonl"
    write(path, model, EXAMPLES[:4])
    before = path.read_bytes()
    others = [*EXAMPLES[:2], EXAMPLES[5], *EXAMPLES[3:]]
    for examples, who, config, said in (
        (others, model, CONFIG, r"out\.jsonl:3: this row has id 'row-2', and now it is 'row-5'"),
        (EXAMPLES[:3], model, CONFIG, "has 4 rows, more than the 3"),
        (EXAMPLES, model, PredictConfig(max_new_tokens=5), "was written with max_new_tokens 4, and now it is 5"),
        (EXAMPLES, predictor("llama"), CONFIG, "was written with model 'the tiny t5', and now it is 'the tiny llama'"),
    ):
        with pytest.raises(DataError, match=said):
            write(path, who, examples, resume=True, config=config)
    assert path.read_bytes() == before
    assert write(path, model, resume=True, config=PredictConfig(max_new_tokens=4, batch_size=2)).kept == 4
    path.write_bytes(b'{"id": 1}\n')
    with pytest.raises(DataError, match=r"out\.jsonl:1: no row of mhr predict"):
        write(path, model, resume=True)


ROW = Example("alpha", "w1 w2", ("w3",), ("w3", "w4"), "x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "y"),
        ("task", "beta"),
        ("input", "w1 w5"),
        ("choices", ("w3", "w5")),
        ("choices", ("w3", "w4", "w5")),
        ("choices", ()),
    ],
    ids=str,
)
def test_rows_of_which_anything_differs_are_not_resumed(
    name: str, value: Any, tmp_path: Path, model: Predictor
) -> None:
    path, config = tmp_path / "out.jsonl", PredictConfig()
    for before, now in ((ROW, replace(ROW, **{name: value})), (replace(ROW, **{name: value}), ROW)):
        write(path, model, [before], overwrite=True, config=config)
        with pytest.raises(DataError, match=rf"out\.jsonl:1: this row has {name} .*, and now it is ") as caught:
            write(path, model, [now], resume=True, config=config)
        assert "\n" not in str(caught.value)
        assert write(path, model, [before], resume=True, config=config).kept == 1


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}]}
ASKED = {"role": "user", "content": "w1"}
FOUND = {"role": "tool", "content": "w2"}
UNANSWERED = {"role": "assistant", "content": ""}
TURNS = (ASKED, CALL, FOUND, UNANSWERED)


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": (ASKED, CALL | {"tool_calls": [{"function": {"name": "look", "arguments": {"at": 2}}}]}, FOUND, UNANSWERED)},
        {"messages": (ASKED, CALL, FOUND | {"name": "look"}, UNANSWERED)},
        {"messages": (ASKED, CALL | {"reasoning_content": "w3"}, FOUND, UNANSWERED)},
        {"messages": ()},
        {"tools": ({"type": "function", "function": {"name": "look"}},)},
    ],
    ids=["call", "name", "reasoning", "no conversation", "tools"],
)  # fmt: skip
def test_conversations_of_which_a_template_may_read_anything_else_are_not_resumed(
    changed: dict[str, Any], tmp_path: Path, model: Predictor
) -> None:
    path, row = tmp_path / "out.jsonl", replace(EXAMPLES[0], messages=TURNS)
    for before, now in ((row, replace(row, **changed)), (replace(row, **changed), row)):
        write(path, model, [before], overwrite=True)
        with pytest.raises(DataError, match=r"out\.jsonl:1: this row has conversation .*, and now it is "):
            write(path, model, [now], resume=True)
        assert write(path, model, [before], resume=True).kept == 1
    write(path, model, [row], overwrite=True)
    answered = replace(row, messages=(*TURNS[:-1], UNANSWERED | {"content": "w4"}))
    assert write(path, model, [answered], resume=True).kept == 1  # the answer is not looked at


def test_a_seed_draws_anew_for_each_part_of_the_rows(tmp_path: Path, predictor: Predict) -> None:
    model = predictor("llama")
    same = [replace(EXAMPLES[0], id=f"row-{i}") for i in range(9)]
    config = PredictConfig(max_new_tokens=6, temperature=1.0, seed=1)
    write(tmp_path / "out.jsonl", model, same, config=config)
    answers = [row["answer"] for row in read(tmp_path / "out.jsonl")]
    assert len({tuple(answers[i : i + 3]) for i in (0, 3, 6)}) == 3
    assert answers[:3] == [answer.text for answer in model.answer(same[:3], config)]
    write(tmp_path / "again.jsonl", model, same, config=config)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_choices_in_another_order_are_the_same(tmp_path: Path, model: Predictor) -> None:
    path = tmp_path / "out.jsonl"
    config = PredictConfig()
    write(path, model, [ROW], config=config)
    assert write(path, model, [replace(ROW, choices=ROW.choices[::-1])], config=config, resume=True).kept == 1


SETTINGS: dict[str, Any] = {
    "task": "alpha",
    "choices": ["w3", "w4"],
    "unseen": "uniform",
    "max_new_tokens": 3,
    "max_input_length": 8,
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": 1,
    "stop": ["w1"],
}
"""Another value of each setting that changes an answer of this model."""


@pytest.mark.parametrize("name", [f.name for f in fields(PredictConfig) if f.name not in ("batch_size", "definition")])
def test_another_setting_is_not_resumed(name: str, tmp_path: Path, model: Predictor) -> None:
    drawn = {"temperature": 1.0} if name in ("top_p", "seed") else {}
    path = tmp_path / "out.jsonl"
    config = PredictConfig(**{**drawn, **({} if name == "choices" else {"max_new_tokens": 4}), name: SETTINGS[name]})
    write(path, model, config=PredictConfig(max_new_tokens=4, **drawn))
    with pytest.raises(
        DataError, match=f"was written with {name if name != 'choices' else '(choices|max_new_tokens)'} "
    ):
        write(path, model, config=config, resume=True)


def other_weights(model: Predictor) -> None:
    next(p for n, p in model.model.named_parameters() if "bank" not in n).data.add_(1.0)


def other_skills(model: Predictor) -> None:
    model.loaded.bank.adapter_parameters()[0].data.add_(1.0)


def other_routing(model: Predictor) -> None:
    model.loaded.bank.router_parameters()[0].data.add_(1.0)


def narrower(model: Predictor) -> None:
    model.model.to(torch.bfloat16)


def other_template(model: Predictor) -> None:
    model.loaded.chat = ChatFormat("chatml")


def other_system(model: Predictor) -> None:
    model.loaded.chat = ChatFormat("auto", system="Be short.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_weights, "by other weights of the tiny t5 .of a run that was trained again"),
        (other_skills, "by other weights"),
        (other_routing, "by other weights"),
        (narrower, "by other weights"),
        (other_template, "with chat_template None, and now it is 'chatml'"),
        (other_system, "with chat_template None"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_model_of_the_same_name_is_not_resumed(
    change: Callable[[Predictor], None], said: str, tmp_path: Path, predictor: Predict
) -> None:
    path = tmp_path / "out.jsonl"
    first, second = predictor("t5"), predictor("t5")
    second.model.load_state_dict(first.model.state_dict())
    same = Predictor(second.loaded, ReadOptions())
    write(path, first, EXAMPLES[:4])
    assert write(path, same, EXAMPLES[:4], resume=True).kept == 4
    change(same)
    with pytest.raises(DataError, match=f"was written {said}"):
        write(path, Predictor(same.loaded, ReadOptions()), resume=True)


def test_what_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path: Path, model: Predictor) -> None:
    path = tmp_path / "out.jsonl"
    write(path, model, EXAMPLES[:4])
    with pytest.raises(ConfigError, match="is there already"):
        write(path, model)
    write(path, model, EXAMPLES[4:6], overwrite=True)
    assert [r["id"] for r in read(path)] == ["row-4", "row-5"]
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("mine\n")
    for settings in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match="was not written by mhr predict"):
            write(foreign, model, **settings)
    assert foreign.read_text() == "mine\n"
    with pytest.raises(ConfigError, match="is a folder, expected a file"):
        write(tmp_path, model)


def test_nothing_is_written_for_rows_that_are_refused(tmp_path: Path, model: Predictor) -> None:
    bad = [*EXAMPLES, Example("delta", "w1", ("",), id="last")]
    with pytest.raises(TaskError, match="unknown task 'delta'"):
        write(tmp_path / "out.jsonl", model, bad)
    assert list(tmp_path.iterdir()) == []
