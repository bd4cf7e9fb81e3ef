"""How examples come to training: the same losses whether tokens are stored, who makes the batches, and across an interruption."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mhr.adapters import read_adapter
from mhr.data import cache
from mhr.data.collators import CausalCollator, Seq2SeqCollator
from mhr.errors import ConfigError
from mhr.files import read_json
from mhr.runs import RunFolder
from mhr.runs.config import dump_config
from mhr.runs.settings import RunConfig
from mhr.training import feeding, pretrain
from mhr.training.signals import Interrupted
from mhr.training.trainer import RoutedTrainer
from tests.cli.running import torchrun

Make = Callable[..., RunConfig]
KINDS = {"t5": Seq2SeqCollator, "llama": CausalCollator}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stored rows."""
    monkeypatch.setenv("MHR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def uneven(tmp_path: Path) -> str:
    """Tasks of inputs of 1 to 12 bytes and targets of 2 or 3."""
    rows = [
        {
            "task": f"t{i % 3}",
            "input": "ab" * (i * 5 % 7) + "a",
            "targets": ("yes", "no")[i % 2],
            "choices": ["yes", "no"],
        }
        for i in range(50)
    ]
    path = tmp_path / "uneven.jsonl"
    path.write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in rows))
    return str(path)


def trained(config: RunConfig, output: Path, **kwargs: Any) -> RunFolder:
    return pretrain(config, str(output), progress=False, **kwargs)


def outcome(run: RunFolder) -> dict[str, Any]:
    """Everything that has to be the same, bit for bit."""
    tensors = {name: tensor.tolist() for name, tensor in read_adapter(run.adapter).tensors.items()}
    return {"metrics": run.metrics(), "truncated": run.info["truncated"], "tensors": tensors}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("model", KINDS)
def test_losses_and_counts_are_the_same_however_batches_are_made(
    model: str,
    grouped: bool,
    settings: Make,
    uneven: str,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Dropout, so that the state of the random numbers matters.
    common = {"tasks": uneven, "steps": 5, "max_input_length": 10, "group_by_length": grouped, "n_heads": 2}
    noise = {"dropout_rate": 0.1} if model == "t5" else {"attention_dropout": 0.1}

    def run(name: str, **flags: Any) -> RunFolder:
        return trained(settings(model, noise, **common, **flags), tmp_path / name)

    plain = outcome(run("plain"))
    assert 0 < plain["truncated"]["cut"] < plain["truncated"]["of"]
    assert plain["truncated"]["of"] == 2 * 5 * 8  # an input and a target of each example
    assert outcome(run("workers", workers=2)) == plain
    assert not folder.exists()
    assert outcome(run("stored", cache=True)) == plain
    assert len(list(folder.iterdir())) == 2

    def fail(*args: Any) -> Any:
        raise AssertionError("it was tokenised again")

    monkeypatch.setattr(KINDS[model], "encode_rows", fail)
    assert outcome(run("both", cache=True, workers=2)) == plain


def test_an_encoder_is_fed_by_workers_and_grouped_by_length(settings: Make, uneven: str, tmp_path: Path) -> None:
    common = {"tasks": uneven, "steps": 4, "n_heads": 2, "max_input_length": 12, "batch_size": 4}
    plain = outcome(trained(settings("bert", **common), tmp_path / "plain"))
    assert plain["truncated"]["cut"] > 0
    assert outcome(trained(settings("bert", workers=2, **common), tmp_path / "workers")) == plain
    grouped = [
        outcome(trained(settings("bert", workers=n, group_by_length=True, **common), tmp_path / f"grouped{n}"))
        for n in (0, 2)
    ]
    assert grouped[0] == grouped[1]
    assert grouped[0]["metrics"] != plain["metrics"]


@pytest.mark.parametrize("flags", [{}, {"cache": True, "workers": 2, "group_by_length": True}])
def test_resume_repeats_losses_and_counts(
    flags: dict[str, Any], settings: Make, uneven: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"tasks": uneven, "n_heads": 2, "batch_size": 4, "accumulation": 2, "max_input_length": 8}
    config = settings("llama", {"attention_dropout": 0.1}, **common, **flags)
    whole = outcome(trained(config, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        step = RoutedTrainer.training_step

        def interrupted(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 4 and not self.stop.asked:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *args, **kwargs)

        patch.setattr(RoutedTrainer, "training_step", interrupted)
        with pytest.raises(Interrupted, match="after step 5 of 8"):
            trained(config, tmp_path / "cut")
    again = trained(config, tmp_path / "cut", resume=True)
    assert again.info["resumed_from"] == "checkpoint-5"
    assert whole["truncated"]["cut"] > 0
    assert outcome(again) == whole


def test_two_processes_share_the_file_and_are_fed_as_one(
    settings: Make, uneven: str, tmp_path: Path, folder: Path
) -> None:
    common = {"tasks": uneven, "steps": 3, "max_input_length": 8, "save_every": 3, "group_by_length": True}
    (tmp_path / "config.yaml").write_text(dump_config(settings(batch_size=4, workers=1, cache=True, **common)))
    done = torchrun("pretrain", "--config", tmp_path / "config.yaml", "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert len(list(folder.iterdir())) == 2
    two, one = RunFolder.open(tmp_path / "two"), trained(settings(batch_size=8, **common), tmp_path / "one")
    assert [a["loss"] for a in two.metrics()] == pytest.approx([a["loss"] for a in one.metrics()], rel=1e-5)
    assert two.info["truncated"] == one.info["truncated"]
    stored = [read_json(next(run.checkpoints.glob("*/truncation.json"))) for run in (two, one)]
    assert stored[0] == stored[1]


def test_a_resumed_run_may_change_who_makes_the_batches(settings: Make, tmp_path: Path) -> None:
    run = trained(settings(steps=2), tmp_path / "run")
    run.write(status="interrupted")
    assert trained(settings(steps=2, workers=1, cache=True), tmp_path / "run", resume=True).status == "done"


def test_grouping_batches_examples_of_like_length(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"task": f"t{i % 2}", "input": "x" * (1 + 7 * i % 29), "targets": "on", "split": "train"} for i in range(29)
    ]
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    padding: dict[bool, int] = {}
    for grouped in (False, True):
        seen: list[int] = []
        collate = feeding.CountedBatches.__call__

        def watched(self: Any, items: Any, seen: list[int] = seen, collate: Any = collate) -> Any:
            batch = collate(self, items)
            seen.append(int((1 - batch["attention_mask"]).sum()))
            return batch

        monkeypatch.setattr(feeding.CountedBatches, "__call__", watched)
        config = settings(tasks=str(tasks), steps=7, batch_size=4, group_by_length=grouped)
        trained(config, tmp_path / str(grouped))
        padding[grouped] = sum(seen)
        monkeypatch.undo()
    assert padding[True] < padding[False] / 4


def test_epochs_become_steps_that_the_run_says(settings: Make, tmp_path: Path) -> None:
    config = settings(steps=None, epochs=0.5)  # of 72 examples, in batches of 8
    run = trained(config, tmp_path / "run")
    assert (run.info["epochs"], run.info["steps"], run.info["config"]["train"]["steps"]) == (0.5, 5, 5)
    assert (run.config().train.steps, run.config().train.epochs) == (5, None)
    assert run.metrics()[-1]["step"] == 5
    run.write(status="interrupted")
    assert trained(config, tmp_path / "run", resume=True).status == "done"
    assert outcome(trained(settings(steps=5), tmp_path / "steps")) == outcome(run)


def test_weights_decide_how_often_tasks_are_drawn(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    collate = feeding.CountedBatches.__call__

    def watched(self: Any, items: Any) -> Any:
        batch = collate(self, items)
        drawn.extend(batch["task_ids"])
        return batch

    monkeypatch.setattr(feeding.CountedBatches, "__call__", watched)
    trained(settings(steps=None, epochs=1, weights={"rev-last": 4.0}), tmp_path / "run")
    assert [drawn.count(name) for name in ("rev-first", "next-last", "rev-last")] == [12, 12, 48]


@pytest.mark.parametrize(
    ("model", "flags", "told"),
    [
        (
            "t5",
            {"weights": {"rev-lst": 2.0}},
            "data.weights names 'rev-lst', which is no training task: did you mean 'rev-last'",
        ),
        ("t5", {"weights": {"swap-last": 2.0}}, "data.weights names 'swap-last', which is no training task"),
        ("bert", {"cache": True}, "data.cache is true, but rows of answer choices are encoded as they are drawn"),
        ("t5", {"cache": True, "mc_loss": 1.0}, "data.cache is true, but rows of answer choices"),
        ("t5", {"steps": None, "epochs": 1, "anneal_to_mu": 10}, "anneal_to_mu is 10, but the run has 9 steps"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    model: str, flags: dict[str, Any], told: str, settings: Make, tmp_path: Path, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        trained(settings(model, **flags), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not folder.exists()


@pytest.mark.parametrize("grouped", [False, True])
def test_many_examples_are_stored_by_themselves_and_where_that_fails_held(
    grouped: bool, settings: Make, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(steps=9, group_by_length=grouped)
    plain = outcome(trained(config, tmp_path / "plain"))
    monkeypatch.setattr(cache, "ENOUGH", 10)
    assert outcome(trained(config, tmp_path / "stored")) == plain
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setenv("MHR_CACHE", str(tmp_path / "plain" / "run.json"))
    held = trained(config, tmp_path / "held")
    assert outcome(held) == plain
    assert "tokens are not kept for later runs: cannot write" in held.info["notes"][0]
    assert torch.get_num_threads() == 1
