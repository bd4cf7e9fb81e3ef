"""Heads from training to scores: several tasks in one run, saved with the adapter, resumed, and answered by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mhr.adapters import load_checkpoint, read_adapter
from mhr.evaluation import choice_scorer, score
from mhr.training import pretrain
from tests.forked import pretrained_by_two
from tests.heads.conftest import Recipe


def test_every_task_gets_the_head_that_its_data_asks_for(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", "three", "number", "pick", steps=60), str(tmp_path / "run"), progress=False)
    heads = read_adapter(run.adapter).heads
    assert heads is not None
    assert [(head.kind, head.labels) for head in heads.heads] == [
        ("classify", ("no", "yes")),
        ("classify", ("a", "b", "c")),
        ("regress", ()),
        ("rank", ()),
    ]
    assert heads.tasks == {"two": 0, "three": 1, "number": 2, "pick": 3}
    assert run.info["head"] == heads.to_json()
    assert read_adapter(run.adapter).tensors["modules.classifier.weight"].shape == (7, 32)
    losses = [record["loss"] for record in run.metrics()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])

    result = score(run.path, part="training", progress=False, output=tmp_path / "scored")
    assert result.tasks["two"]["accuracy"] > 0.5
    assert {"pearson", "spearman", "mse"} <= result.tasks["number"].keys()
    by_task = {p.task: p for p in result.predictions}
    assert by_task["three"].choices == ("a", "b", "c")
    assert by_task["three"].answer == "abc"[max(range(3), key=by_task["three"].scores.__getitem__)]
    assert float(by_task["number"].answer) == pytest.approx(by_task["number"].scores[0], rel=1e-5)
    assert by_task["pick"].how == "ranking"
    assert {by_task[t].how for t in ("two", "three")} == {"classification"}


def test_a_resumed_run_is_the_whole_one(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe("two", "three", steps=6, save_every=3)
    whole = pretrain(config, str(tmp_path / "whole"), progress=False)
    folder = tmp_path / "cut"
    from mhr.training.trainer import RoutedTrainer

    step = RoutedTrainer.training_step

    def failing(self: RoutedTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RoutedTrainer, "training_step", failing)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, str(folder), progress=False)
    again = pretrain(config, str(folder), resume=True, progress=False)
    assert again.info["resumed_from"] == "checkpoint-3"
    a, b = read_adapter(again.adapter), read_adapter(whole.adapter)
    assert a.heads == b.heads
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)


def test_a_checkpoint_opens_with_its_outputs(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", "three", steps=2), str(tmp_path / "run"), progress=False)
    model, _ = load_checkpoint(run.adapter)
    assert model.config.num_labels == 5
    assert torch.equal(model.classifier.weight, read_adapter(run.adapter).tensors["modules.classifier.weight"])


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(recipe: Recipe, tmp_path: Path) -> None:
    """Also where a process draws no example of a task, whose head then has a gradient of zeros there."""
    tasks = ("two", "three", "number", "pick")
    two = pretrained_by_two(recipe(*tasks, batch_size=2), tmp_path / "two")
    one = pretrain(recipe(*tasks, batch_size=4), str(tmp_path / "one"), progress=False)
    for a, b in zip(two.metrics(), one.metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["tasks"] == pytest.approx(b["tasks"], rel=1e-4)


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"precision": "bf16"}])
def test_other_ways_of_computing_give_the_losses(settings: dict[str, Any], recipe: Recipe, tmp_path: Path) -> None:
    config = recipe("two", "number", "pick", steps=2)
    plain = pretrain(config, str(tmp_path / "plain"), progress=False)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))
    other = pretrain(config, str(tmp_path / "other"), progress=False)
    for a, b in zip(plain.metrics(), other.metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5 if "precision" not in settings else 0.1)


def test_validation_scores_classes_and_measures_numbers(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe("two", "number", "pick", steps=4, eval_every=2, keep_best=True, eval_rows=4)
    run = pretrain(config, str(tmp_path / "run"), progress=False, scorer=choice_scorer)
    found = run.validations()[4]
    assert set(found["losses"]) == {"two", "number", "pick"}
    assert set(found["scores"]) == {"two", "pick"}


@pytest.mark.parametrize("continue_as", [None, "mu"])
def test_a_run_that_goes_on_keeps_the_heads_of_its_tasks(
    continue_as: str | None, recipe: Recipe, tmp_path: Path
) -> None:
    first = pretrain(recipe("two", "three", "number"), str(tmp_path / "first"), progress=False)
    before = read_adapter(first.adapter)
    assert before.heads is not None
    known = ("number", "three") if continue_as is None else ("number", "three", "two-more")
    more = {"continue_from": str(first.path), "steps": 1, "lr": 1e-9}
    more |= {} if continue_as is None else {"continue_as": continue_as}
    run = pretrain(recipe(*known, **more), str(tmp_path / "run"), progress=False)
    after = read_adapter(run.adapter)
    assert after.heads is not None
    assert set(after.heads.tasks) == set(known)
    for task in ("number", "three"):
        held, now = (
            each.tensors["modules.classifier.weight"][list(each.heads.outputs(each.heads.tasks[task]))]
            for each in (before, after)
        )
        torch.testing.assert_close(now, held, rtol=0, atol=1e-6)
