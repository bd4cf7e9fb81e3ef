"""`mhr pretrain` with validation, trackers and optimizers by name, and what it refuses of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers.integrations import integration_utils

from mhr.runs.notes import best_line
from mhr.training import optimizers
from tests.cli.running import SMALL, refuse, succeed


def test_a_run_says_its_best_validation(rows: Path, tmp_path: Path) -> None:
    options = ("--tasks", rows, "--steps", 4, "--eval-every", 2, "--eval-rows", 1, "--keep-best", "--early-stopping", 3)
    told = succeed(
        "pretrain", *SMALL, *options, "--warmup", 1, "--optimizer", "adamw_torch_fused", "--output", tmp_path / "run"
    )
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["validation"] == {"even": 1, "odd": 1}
    step = info["best"]["step"]
    assert f"Note: best validation: step {step} (loss {info['best']['loss']:.4f}, score " in told.stderr
    assert "validation every 2 steps on 2 examples: those of 2 tasks are taken out" in told.stderr
    assert info["config"]["train"]["warmup"] == 1.0


@pytest.mark.parametrize(
    ("best", "steps", "line"),
    [
        (None, 8, None),
        ({"step": 4, "loss": 1.5, "score": None, "kept": True}, 8, "step 4 (loss 1.5000), which is the result"),
        ({"step": 4, "loss": 1.5, "score": 0.5, "kept": False}, 8, "step 4 (loss 1.5000, score 50.0 %), the result is step 8"),
        (
            {"step": 4, "loss": 1.5, "score": None, "kept": True},
            6,
            "step 4 (loss 1.5000), which is the result; training ended after step 6 of 8, where it stopped early",
        ),
        (
            {"step": 4, "loss": 1.5, "score": None, "kept": False},
            6,
            "step 4 (loss 1.5000), the result is step 6 of 8, where it stopped early",
        ),
    ],
)  # fmt: skip
def test_the_line_says_whose_weights_are_the_result(best: dict | None, steps: int, line: str | None) -> None:
    found = best_line({"best": best, "steps": steps, "config": {"train": {"steps": 8}}})
    assert found == (None if line is None else f"best validation: {line}")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--early-stopping", 2), "early_stopping is 2, but nothing is validated: set eval_every"),
        (
            ("--optimizer", "adamw_8bits"),
            "--optimizer: train.optimizer is 'adamw_8bits', expected one of .*did you mean 'adamw_8bit'",
        ),
        (("--optimizer", "lion_8bit"), "optimizer is 'lion_8bit', which needs the package bitsandbytes"),
        (("--report-to", "wandb"), "report_to has 'wandb', whose package is not installed"),
        (
            ("--report-to", "wandbd"),
            "--report-to: train.report_to has 'wandbd', expected one of tensorboard, wandb, mlflow, trackio",
        ),
        (
            ("--warmup", 1.5),
            "--warmup: train.warmup is 1.5, expected a fraction of all steps below 1 or an integer number of steps",
        ),
        (("--eval-every", -1), "--eval-every: train.eval_every is -1, expected an integer of at least 0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(
    options: tuple[str, object], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    found = refuse("pretrain", *SMALL, "--steps", "1", *map(str, options), "--output", tmp_path / "run")
    assert re.search(line, found), found
    assert not (tmp_path / "run").exists()
