"""Reports to trackers: Trainer's integrations get every log and validation as numbers; a missing package is one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import integration_utils

from mhr.errors import ConfigError
from mhr.evaluation import choice_scorer
from mhr.runs.settings import RunConfig
from mhr.runs.train_settings import REPORTERS
from mhr.training import pretrain
from mhr.training.reporting import numbers_of, reporting
from mhr.training.watch import ProgressBar

Make = Callable[..., RunConfig]


class Tracker:
    """A stand-in for the trackio package, with what Trainer's own callback calls of it."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.started: list[dict[str, Any]] = []
        self.finished = 0

    def module(self) -> ModuleType:
        module: Any = ModuleType("trackio")
        module.init = lambda **settings: self.started.append(settings)
        module.log = lambda values, **more: self.logged.append(values)
        module.finish = self._finish
        module.config = type("Config", (dict,), {"update": lambda *args, **kwargs: None})()
        module.context_vars = ModuleType("context_vars")
        module.context_vars.current_space_id = type("Variable", (), {"get": lambda self: None})()
        module.__version__ = "0.21.1"
        return module

    def _finish(self) -> None:
        self.finished += 1


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Tracker:
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "trackio", tracker.module())
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    return tracker


def test_a_tracker_gets_logs_and_validations(settings: Make, tmp_path: Path, tracker: Tracker) -> None:
    config = settings(steps=3, eval_every=2, report_to=["trackio", "tensorboard"])
    run = pretrain(config, str(tmp_path / "run"), progress=False, scorer=choice_scorer)
    (started,) = tracker.started
    assert started["name"] == "run"
    training = [values for values in tracker.logged if "train/loss" in values]
    assert [values["train/loss"] for values in training] == [record["loss"] for record in run.metrics()]
    assert training[0]["train/router_lr"] == run.metrics()[0]["router_lr"]
    for task, loss in run.metrics()[0]["tasks"].items():
        assert training[0][f"train/tasks/{task}"] == loss
    validations = [values for values in tracker.logged if "eval/loss" in values]
    assert [values["eval/loss"] for values in validations] == [v["loss"] for v in run.validations().values()]
    assert [values["eval/score"] for values in validations] == [v["score"] for v in run.validations().values()]
    assert all(isinstance(value, (int, float)) for values in [*training, *validations] for value in values.values())
    assert tracker.finished == 1


def test_by_default_nothing_is_reported(settings: Make, tmp_path: Path, tracker: Tracker) -> None:
    pretrain(settings(steps=1), str(tmp_path / "run"), progress=False)
    assert not tracker.started
    assert not tracker.logged
    assert reporting(None) == reporting(["tensorboard"]) == []


def test_every_name_has_an_integration_of_trainer() -> None:
    assert set(REPORTERS) <= set(integration_utils.INTEGRATION_TO_CALLBACK)


def test_a_missing_package_is_one_line_and_nothing_is_written(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    with pytest.raises(
        ConfigError, match="report_to has 'wandb', whose package is not installed.*pip install wandb"
    ) as e:
        pretrain(settings(report_to=["wandb"]), str(tmp_path / "run"), progress=False)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="report_to has 'wandbb', expected one of .*did you mean 'wandb'"):
        settings(report_to=["wandbb"])


def test_numbers_get_names_that_every_tracker_takes() -> None:
    record = {"step": 3, "loss": 2, "router_lr": None, "tasks": {"a b/c": 1.0, "d:é": 0.5}}
    assert numbers_of(record) == {"loss": 2.0, "tasks/a b/c": 1.0, "tasks/d__": 0.5}


def test_tensorboard_holds_validations_too(settings: Make, tmp_path: Path) -> None:
    run = pretrain(settings(steps=4, eval_every=2), str(tmp_path / "run"), progress=False, scorer=choice_scorer)
    held = EventAccumulator(str(run.logs)).Reload()
    for name in ("loss", "score", "losses/rev-last", "scores/rev-last"):
        assert [event.step for event in held.Scalars(f"validation/{name}")] == [2, 4]
    assert held.Scalars("validation/loss")[1].value == pytest.approx(run.validations()[4]["loss"])


def test_the_bar_shows_the_last_validation() -> None:
    bar = ProgressBar(3, "pretrain", shown=False)
    bar.on_evaluate(None, None, None, metrics={"eval_loss": 1.5, "eval_score": 0.25})  # type: ignore[arg-type]
    assert bar.progress.tasks[0].fields["validation"] == ", validation loss 1.5000, score 25.0 %"
    bar.on_evaluate(None, None, None, metrics={"eval_loss": 1.5})  # type: ignore[arg-type]
    assert bar.progress.tasks[0].fields["validation"] == ", validation loss 1.5000"
