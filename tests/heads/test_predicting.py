"""Heads answer texts and rows: a class, a number or a choice, as in evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mhr
from mhr.data import Example
from mhr.errors import DataError, DivergedError, TaskError
from mhr.evaluation import load_model, rank_choices, score
from mhr.prediction import PredictConfig
from mhr.training import pretrain
from tests.heads.conftest import Recipe


def test_heads_answer_as_in_evaluation(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", "three", "number", "pick"), str(tmp_path / "run"), progress=False)
    scored = score(run.path, part="training", progress=False).predictions
    found = mhr.load(run.path)
    assert set(found.tasks) == {"two", "three", "number", "pick"}
    examples = [Example(p.task, p.input, p.targets, p.choices if p.task == "pick" else (), p.id) for p in scored]
    answers = found.answer(examples)
    assert [(a.text, a.how) for a in answers] == [(p.answer, p.how) for p in scored]
    assert {a.how for a in answers} == {"classification", "regression", "ranking"}
    texts = [e.input for e in examples if e.task != "pick"]
    tasks = [e.task for e in examples if e.task != "pick"]
    assert found.predict(texts, tasks) == [a.text for e, a in zip(examples, answers, strict=True) if e.task != "pick"]

    (one,) = found.answer([Example("three", "red 1", ("",), ("c", "a"))])
    (whole,) = found.answer([Example("three", "red 1", ("",))])
    scores = dict(zip(whole.choices, whole.scores, strict=True))
    assert dict(zip(one.choices, one.scores, strict=True)) == {c: scores[c] for c in "ac"}
    assert one.text == max("ac", key=scores.__getitem__)

    for example, said in (
        (
            Example("two", "red", ("",), ("yes", "maybe")),
            "the choice 'maybe', but the head of task 'two' answers with one of 'no', 'yes'",
        ),
        (Example("number", "red", ("",), ("1", "2")), "the head of task 'number' answers with a number"),
        (Example("pick", "red", ("",)), "ranks choices and generates nothing"),
    ):
        with pytest.raises(DataError, match=said):
            found.answer([examples[0], example])
    with pytest.raises(TaskError, match="unknown task 'tow' of .*did you mean 'two'"):
        found.predict(["red 1"], "tow")
    with pytest.raises(TaskError, match="no head for task 'tow'"):
        found.predict(["red 1"], "tow", unseen="uniform")


def test_an_answer_is_one_of_the_example_s_own_choices(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("three"), str(tmp_path / "run"), progress=False)
    (whole,) = rank_choices(load_model(run.path), [Example("three", "red 1", ("",))])
    scores = dict(zip(whole.options, whole.scores, strict=True))
    file = tmp_path / "pairs.jsonl"
    for pair in ("ab", "ba", "ac", "bc"):  # some without the best of all classes
        row = {"task": "three", "input": "red 1", "targets": pair[0], "choices": list(pair), "split": "test"}
        file.write_text(json.dumps(row) + "\n")
        (found,) = score(run.path, tasks=str(file), progress=False).predictions
        assert found.answer == max(pair, key=scores.__getitem__)
        assert found.choices == tuple(pair)
        assert found.scores == pytest.approx([scores[choice] for choice in pair], abs=1e-6)


def test_a_model_of_one_task_needs_no_name(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", method="full"), str(tmp_path / "run"), progress=False)
    found = mhr.load(run.path)
    assert found.predict(["red 1", "blue 2"]) == found.predict(["red 1", "blue 2"], "two")
    (answer,) = found.answer(found.ask(["red 1"], found.default_task(PredictConfig()), PredictConfig()))
    assert answer.how == "classification"
    assert answer.choices == ("no", "yes")


def test_a_head_that_computes_nan_does_not_answer(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", "number"), str(tmp_path / "run"), progress=False)
    loaded = load_model(run.path)
    with torch.no_grad():
        [module for module in loaded.model.modules() if isinstance(module, torch.nn.LayerNorm)][-1].weight[0] = (
            torch.nan
        )
    for task in ("two", "number"):
        with pytest.raises(DivergedError, match=rf"computes scores \[nan.* task '{task}'"):
            rank_choices(loaded, [Example(task, "some text", ("",))])
