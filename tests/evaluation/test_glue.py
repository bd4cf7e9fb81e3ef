"""GLUE is judged by its own metrics, from its files to the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import mhr
from mhr.data import Example
from mhr.data.forms.glue import GLUE
from mhr.errors import DataError
from mhr.evaluation import choice_scorer, evaluate, score
from mhr.evaluation.measuring import score_answers
from mhr.runs import load_config
from mhr.task_heads import TaskHead
from mhr.training import pretrain
from tests.evaluation.conftest import Ask
from tests.glue import splits_of, write_glue


def test_every_task_by_its_metrics(ask: Ask, tmp_path: Path) -> None:
    tasks = mhr.load_tasks(write_glue(tmp_path / "glue"))
    ranked = tasks.select([name for name in tasks if name != "stsb"])
    found = evaluate(ask("bert"), ranked, progress=False)
    for name, scores in found.tasks.items():
        assert scores["metric"] == GLUE[name].metrics[0]
        assert set(GLUE[name].metrics) <= scores.keys()
        assert scores["n"] == 4
    assert found.mean["score"] == pytest.approx(sum(s["score"] for s in found.tasks.values()) / 8)
    answers = {p.id: p for p in found.predictions if p.task == "mnli"}
    for part in ("matched", "mismatched"):
        own = [p for p in answers.values() if p.part == part]
        assert found.tasks["mnli"][f"accuracy_{part}"] == sum(p.answer in p.targets for p in own) / 2
    similar = evaluate(ask("t5"), tasks.select(["stsb"]), max_target_length=4, progress=False)
    assert similar.tasks["stsb"]["metric"] == "pearson"
    with pytest.raises(DataError, match="can be evaluated: has no choices to rank, and an encoder cannot generate"):
        evaluate(ask("bert"), tasks.select(["stsb"]), progress=False)


def test_an_encoder_is_trained_validated_and_judged_on_all_of_it(
    backbone: Callable[..., str], small_and_quick: None, tmp_path: Path
) -> None:
    folder = write_glue(tmp_path / "glue")
    flags = {"steps": 2, "batch_size": 8, "n_heads": 2, "n_skills": 2, "rank": 2, "eval_every": 2, "eval_rows": 3}
    config = load_config(
        model=backbone("bert"), tasks=str(folder), keep_best=True, best_by="score", max_input_length=24, **flags
    )
    run = pretrain(config, str(tmp_path / "run"), progress=False, scorer=choice_scorer)
    assert run.validations()[2]["scores"].keys() == GLUE.keys()
    found = score(run.path, part="all", progress=False).tasks
    assert {name: scores["metric"] for name, scores in found.items()} == {
        name: task.metrics[0] for name, task in GLUE.items()
    }
    assert {"pearson", "spearman"} <= found["stsb"].keys()
    assert {"accuracy", "f1"} <= found["mrpc"].keys()


def test_scores_while_training_are_those_of_evaluation() -> None:
    rows = [Example("t", f"i {i}", (t,), ("no", "yes")) for i, t in enumerate(("no", "yes", "yes", "no"))]
    answers = ["no", "yes", "no", "yes"]
    assert score_answers((), rows, answers, None) == 0.5
    assert score_answers(("f1",), rows, answers, None) == 0.5
    assert score_answers(("matthews", "f1"), rows, ["no", "yes", "no", "no"], None) == pytest.approx(1 / 3**0.5)
    assert score_answers(("matthews",), rows, ["no"] * 4, None) == 0  # undefined
    assert score_answers(("accuracy_matched",), rows, answers, None) == 0.5  # drawn from training examples, of no part
    bare = [replace(e, choices=()) for e in rows]
    assert score_answers(("f1",), bare, answers, TaskHead("classify", ("no", "yes"))) == 0.5
    numbers = [replace(e, choices=(), targets=(str(i),)) for i, e in enumerate(rows)]
    assert score_answers(("pearson",), numbers, ["0", "2", "4", "6"], TaskHead("regress")) == pytest.approx(1)


def test_mnli_without_either_validation_split(ask: Ask, tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "glue") / "MNLI"
    (folder / "dev_mismatched.tsv").unlink()
    found = evaluate(ask("bert"), mhr.load_tasks(folder), progress=False).tasks["mnli"]
    assert found["metric"] == "accuracy_matched"
    assert "accuracy_mismatched" not in found
    assert "the split validation_mismatched (dev_mismatched), and the task has none" in found["remarks"][0]
    (folder / "dev_matched.tsv").unlink()
    with pytest.raises(DataError) as error:
        evaluate(ask("bert"), mhr.load_tasks(folder), progress=False)
    assert str(error.value) == (
        f"nothing of {folder} can be evaluated: no test examples: it has neither the split validation_matched (dev_matched) nor "
        "validation_mismatched (dev_mismatched) (1 tasks)"
    )


def test_mnli_in_one_file_without_splits(ask: Ask, tmp_path: Path) -> None:
    rows = [row for part in splits_of("mnli").values() for row in part]
    (tmp_path / "mnli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = mhr.load_tasks(tmp_path / "mnli.jsonl")
    with pytest.raises(DataError, match="accuracy_matched is for examples of the split validation_matched"):
        evaluate(ask("bert"), tasks, progress=False)
    assert evaluate(ask("bert"), tasks, metrics=["accuracy"], progress=False).tasks["mnli"]["n"] == 2
