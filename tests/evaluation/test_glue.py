"""GLUE is judged by its own metrics, from its files to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mhr
from mhr.data.forms.glue import GLUE
from mhr.errors import DataError
from mhr.evaluation import evaluate
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
