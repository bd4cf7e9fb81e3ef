"""Pretraining runs: every method and kind learns, what is written is complete, bad input leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from mhr.adapters import load_checkpoint, read_adapter
from mhr.errors import CheckpointError, DataError, MhrError, TargetError, TrainingError
from mhr.methods import BY_TOKEN, METHODS
from mhr.runs import RunFolder
from mhr.runs.checkpoints import all_checkpoints, fault_of
from mhr.runs.settings import RunConfig
from mhr.training import pretrain
from mhr.training.resuming import open_run
from mhr.training.signals import Interrupted
from mhr.training.trainer import RoutedTrainer
from tests.forked import forked, pretrained_by_two

Make = Callable[..., RunConfig]


def losses(run: RunFolder) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in run.metrics()}


def killed(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(step: int, config: RunConfig, output: Path) -> None:
    """Begin a run that is killed at the beginning of a step; for a process of its own."""
    work = RoutedTrainer.training_step

    def training_step(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
        return (killed if self.state.global_step + 1 == step else work)(self, *args, **kwargs)

    RoutedTrainer.training_step = training_step  # type: ignore[method-assign]
    pretrain(config, str(output), progress=False)


def killed_while_writing(step: int, config: RunConfig, output: Path) -> None:
    """Begin a run that is killed when of a checkpoint the adapter and the optimizer are written, and random numbers and mark are not."""
    save = RoutedTrainer._save_scaler

    def save_scaler(self: RoutedTrainer, folder: str) -> None:
        (killed if self.state.global_step == step else save)(self, folder)

    RoutedTrainer._save_scaler = save_scaler  # type: ignore[method-assign]
    pretrain(config, str(output), progress=False)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in BY_TOKEN])
def test_every_method_lowers_the_loss(method: str, settings: Make, tmp_path: Path) -> None:
    lr = 0.1 if "ia3" in method else 1e-2
    own = {"adapter.router": {"shots": 8}} if method in ("pha", "generative-adapter") else {}
    model = ("bart",) if method == "bitfit" else ()  # a T5 has no biases
    run = pretrain(
        settings(*model, method=method, steps=12, lr=lr, save_every=12, **own), str(tmp_path / "run"), progress=False
    )
    found = list(losses(run).values())
    assert sum(found[-3:]) < sum(found[:3])
    assert run.status == "done"
    assert run.result() == (run.model if method == "full" else run.adapter)
    assert run.info["tasks"] == ["rev-first", "next-last", "rev-last"]
    assert set(run.metrics()[-1]["tasks"]) <= set(run.info["tasks"])
    assert list(run.logs.glob("events.*"))


@pytest.mark.parametrize(("model", "kind"), [("bart", "seq2seq"), ("llama", "causal"), ("gpt2", "causal")])
def test_every_kind_of_model_lowers_the_loss(model: str, kind: str, settings: Make, tmp_path: Path) -> None:
    config = settings(model, steps=12, save_every=12, n_heads=2, lr=2e-2)
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    found = list(losses(run).values())
    assert sum(found[-3:]) < sum(found[:3])
    assert run.info["model_kind"] == kind


def test_an_encoder_learns_to_rank_and_leaves_out_tasks_without_choices(settings: Make, tmp_path: Path) -> None:
    rows = [{"task": "agree", "input": f"text {i}", "targets": "yes", "choices": ["no", "yes"]} for i in range(16)]
    rows += [{"task": "write", "input": f"text {i}", "targets": f"on {i % 2}"} for i in range(4)]
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in rows))
    config = settings("bert", tasks=str(tasks), steps=24, save_every=24, n_heads=2, lr=5e-2)
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    assert run.metrics()[-1]["loss"] < 0.5 < run.metrics()[0]["loss"]
    assert run.info["tasks"] == ["agree"]
    assert "no choices" in run.info["left_out"]["write"]
    assert read_adapter(run.adapter).modules == ["classifier"]


def test_full_writes_a_plain_model_with_its_tokenizer(settings: Make, tmp_path: Path) -> None:
    run = pretrain(settings(method="full", steps=4), str(tmp_path / "run"), progress=False)
    model = AutoModelForSeq2SeqLM.from_pretrained(run.model)
    before = AutoModelForSeq2SeqLM.from_pretrained(run.info["base"])
    assert model.config.use_cache
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert (run.model / "tokenizer_config.json").is_file()
    assert run.info["parameters"]["trained"] == run.info["parameters"]["all"]


def test_ctrl_c_leaves_a_checkpoint_and_resume_repeats_the_losses(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dropout and routing noise, so that the state of the random numbers matters.
    config = settings(model_config={"dropout_rate": 0.1}, noise="per_example", steps=8, batch_size=4, accumulation=2)
    whole = pretrain(config, str(tmp_path / "whole"), progress=False)

    with monkeypatch.context() as patch:
        step = RoutedTrainer.training_step

        def interrupted(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 4 and not self.stop.asked:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, *args, **kwargs)

        patch.setattr(RoutedTrainer, "training_step", interrupted)
        with pytest.raises(Interrupted, match="after step 5 of 8"):
            pretrain(config, str(tmp_path / "cut"), progress=False)
    cut = RunFolder.open(tmp_path / "cut")
    assert cut.status == "interrupted"
    assert [p.name for p in all_checkpoints(cut.checkpoints)] == ["checkpoint-5", "checkpoint-4"]

    again = pretrain(config, str(tmp_path / "cut"), resume=True, progress=False)
    assert again.info["resumed_from"] == "checkpoint-5"
    assert losses(again) == losses(whole)
    a, b = read_adapter(again.adapter).tensors, read_adapter(whole.adapter).tensors
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_kill_leaves_a_usable_checkpoint_and_resume_repeats_the_losses(settings: Make, tmp_path: Path) -> None:
    config = settings(model_config={"dropout_rate": 0.1}, noise="per_task", steps=10, save_every=4)
    between, during = tmp_path / "between", tmp_path / "during"
    codes = forked(partial(killed_at, 7, config, between), partial(killed_while_writing, 8, config, during))
    assert codes == [-signal.SIGKILL, -signal.SIGKILL]
    whole = pretrain(config, str(tmp_path / "whole"), progress=False)
    assert (during / "checkpoints/checkpoint-8/mhr_adapter.safetensors").is_file()
    assert fault_of(during / "checkpoints/checkpoint-8") == "it was being written when the run ended"
    assert RunFolder.open(between).status == "running"
    for folder in (between, during):
        again = pretrain(config, str(folder), resume=True, progress=False)
        assert again.info["resumed_from"] == "checkpoint-4"
        assert losses(again) == losses(whole)
        assert [p.name for p in all_checkpoints(again.checkpoints)] == ["checkpoint-10", "checkpoint-8"]
        assert all(fault_of(p) is None for p in all_checkpoints(again.checkpoints))
    assert "checkpoint-8" in again.info["skipped"][0]


def test_what_a_resumed_run_cannot_use_is_said_and_it_never_begins_anew_unasked(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(steps=6, save_every=2, log_every=1)
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    run.write(status="running")
    newest, older = all_checkpoints(run.checkpoints)[:2]
    (newest / "optimizer.pt").write_bytes(b"")
    pretrain(config, str(run.path), resume=True)
    told = " ".join(capsys.readouterr().err.split())
    assert f"skipped {newest}: optimizer.pt has 0 bytes" in told
    assert f"going on from {older.name}" in told
    run.write(status="running")
    for checkpoint in all_checkpoints(run.checkpoints):
        (checkpoint / "optimizer.pt").write_bytes(b"")
    before = run.metrics()
    with pytest.raises(CheckpointError, match="none of the . checkpoints in .* can be used"):
        pretrain(config, str(run.path), resume=True, progress=False)
    assert run.metrics() == before


def test_a_run_whose_base_model_was_written_anew_is_not_resumed(
    settings: Make, backbone: Callable[..., str], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(backbone("t5"), base)
    config = dataclasses.replace(settings(steps=4, save_every=2), model=str(base))
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    whole = losses(run)
    run.write(status="interrupted")
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    other = AutoModelForSeq2SeqLM.from_pretrained(base)
    torch.nn.init.normal_(other.shared.weight)
    other.save_pretrained(base)
    with pytest.raises(CheckpointError, match="checkpoint-2 belongs to another base model .*the weights are not"):
        pretrain(config, str(run.path), resume=True, progress=False)
    assert RunFolder.open(run.path).status == "failed"
    shutil.rmtree(base)
    shutil.copytree(backbone("t5"), base)
    assert losses(pretrain(config, str(run.path), resume=True, progress=False)) == whole


def test_a_run_that_groups_by_length_goes_on_in_the_order_that_it_was_begun_in(settings: Make, tmp_path: Path) -> None:
    common = {"steps": 4, "save_every": 2, "group_by_length": True}
    run = pretrain(settings(batch_size=4, **common), str(tmp_path / "run"), progress=False)
    run.write(status="interrupted", processes=2, global_batch=8)  # as if two processes had begun it
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    with pytest.raises(TrainingError, match="8 of which stand side by side, and 1 processes with batch_size 4 make 4"):
        pretrain(settings(batch_size=4, accumulation=2, **common), str(run.path), resume=True, progress=False)
    again = pretrain(settings(batch_size=8, **common), str(run.path), resume=True, progress=False)
    assert (again.status, again.info["processes"]) == ("done", 1)


@pytest.mark.parametrize("what", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    what: str, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def onto_a_full_disk(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        full = "checkpoint-4" in str(path) and Path(path).name == what
        save(value, "/dev/full" if full else path, *args, **kwargs)

    config = settings(steps=6, save_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", onto_a_full_disk)
        with pytest.raises(
            TrainingError, match="cannot write .*checkpoint-4: .*the last checkpoint is .*checkpoint-2$"
        ):
            pretrain(config, str(tmp_path / "run"), progress=False)
    cut = RunFolder.open(tmp_path / "run")
    assert cut.status == "failed"
    assert [p.name for p in all_checkpoints(cut.checkpoints)] == ["checkpoint-2"]
    again = pretrain(config, str(cut.path), resume=True, progress=False)
    assert again.info["resumed_from"] == "checkpoint-2"
    assert losses(again) == losses(pretrain(config, str(tmp_path / "whole"), progress=False))


def test_a_folder_that_vanishes_is_told_in_one_line(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = RoutedTrainer.training_step

    def vanishing(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            shutil.rmtree(self.run.path)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(RoutedTrainer, "training_step", vanishing)
    with pytest.raises(MhrError, match=r"cannot write .*run is gone: was it deleted or moved meanwhile\?$"):
        pretrain(settings(steps=6, save_every=2), str(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_two_processes_give_the_losses_of_one(settings: Make, tmp_path: Path) -> None:
    two = settings(steps=5, batch_size=4, accumulation=2, save_every=5)
    both = pretrained_by_two(two, tmp_path / "two")
    one = pretrain(settings(steps=5, batch_size=16, save_every=5), str(tmp_path / "one"), progress=False)
    for a, b in zip(both.metrics(), one.metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert a["tasks"] == pytest.approx(b["tasks"], rel=1e-5)
    assert {p.name for p in both.checkpoints.glob("*/rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert fault_of(both.checkpoints / "checkpoint-5") is None


def test_a_finished_run_is_not_repeated_and_other_settings_do_not_resume_it(settings: Make, tmp_path: Path) -> None:
    config = settings(steps=2)
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    before = run.metrics_file.stat().st_mtime_ns
    assert pretrain(config, str(tmp_path / "run"), resume=True, progress=False).status == "done"
    assert run.metrics_file.stat().st_mtime_ns == before
    with pytest.raises(TrainingError, match=r"started with train.lr = 0.01, not 0.02"):
        pretrain(settings(steps=2, lr=0.02), str(tmp_path / "run"), resume=True, progress=False)
    with pytest.raises(MhrError, match="not empty.*--overwrite"):
        pretrain(config, str(tmp_path / "run"), progress=False)


def test_a_run_is_not_resumed_on_other_data(settings: Make, tasks_file: Path, tmp_path: Path) -> None:
    """A collection that has changed since would give a run that no uninterrupted one is."""
    file = tmp_path / "tasks.jsonl"
    file.write_text(tasks_file.read_text())
    config = settings(steps=4, tasks=str(file), save_every=2)
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    run.write(status="running")
    before = (run.path / "run.json").read_bytes()
    lines = tasks_file.read_text().splitlines(keepends=True)
    for text, said in (
        ("".join(lines[1:]), "a number of examples of 72, and .*tasks.jsonl now gives 71"),
        (
            "".join(lines).replace("rev-first", "rev-other"),
            "the tasks rev-first, next-last, rev-last, and .* now gives rev-other, next-last",
        ),
        (
            "".join(lines).replace('"input": "', '"input": "a', 1),
            "examples of which the digest is [0-9a-f]{16}, and .* now gives [0-9a-f]{16}",
        ),
        ("".join([*lines[1:24], lines[0], *lines[24:]]), "examples of which the digest is"),
    ):
        file.write_text(text)
        with pytest.raises(TrainingError, match=f"was begun with {said}") as caught:
            pretrain(config, str(run.path), resume=True, progress=False)
        assert "\n" not in str(caught.value)
        assert (run.path / "run.json").read_bytes() == before
    file.write_text("".join(lines))
    assert pretrain(config, str(run.path), resume=True, progress=False).status == "done"


@pytest.mark.parametrize("made", [False, True], ids=["missing", "empty"])
def test_every_process_begins_a_run_that_is_to_be_resumed_and_is_not_there(
    made: bool, settings: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    if made:
        folder.mkdir()

    class State:
        num_processes = 2

        def __init__(self, first: bool):
            self.is_main_process = first

        def wait_for_everyone(self) -> None:
            """The first process goes on from here before the other one does."""
            if not self.is_main_process:
                assert open_run(settings(), str(folder), cast(Any, State(True)), True, False, {})[0].info == {}

    run, checkpoint = open_run(settings(), str(folder), cast(Any, State(False)), True, False, {})
    assert (run.path, run.info, checkpoint) == (folder, {}, None)


def test_what_ended_a_run_is_not_told_of_one_that_was_resumed_to_its_end(settings: Make, tmp_path: Path) -> None:
    config = settings(steps=2, save_every=2)
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    run.write(status="interrupted", error="stopped after step 1 of 2")
    info = pretrain(config, str(tmp_path / "run"), resume=True, progress=False).info
    assert info["status"] == "done"
    assert "error" not in info
    assert RunFolder.open(run.path).info == info


def test_a_checkpoint_of_another_bank_is_no_part_of_a_run(settings: Make, tmp_path: Path) -> None:
    run = pretrain(settings(steps=4, save_every=2, rank=2), str(tmp_path / "run"), progress=False)
    other = pretrain(settings(steps=4, save_every=2, rank=3), str(tmp_path / "other"), progress=False)
    shutil.rmtree(run.checkpoints)
    shutil.copytree(other.checkpoints, run.checkpoints)
    run.write(status="running")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-4 has the shape .* for '.*', and the run has .*: it is of another run"
    ):
        pretrain(settings(steps=4, save_every=2, rank=2), str(run.path), resume=True, progress=False)


def test_a_failed_run_says_so(settings: Make, tmp_path: Path) -> None:
    config = settings(steps=6, lr=1e20, clip=0, scheduler="constant", warmup=0)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d"):
        pretrain(config, str(tmp_path / "run"), progress=False)
    run = RunFolder.open(tmp_path / "run")
    assert run.status == "failed"
    assert "step" in run.info["error"]


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        ({"tasks": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"targets": ["qq"]}, TargetError, "'qq'"),
        ({"n_heads": 5}, TargetError, "does not divide"),
        ({"fit": True, "max_input_length": 3}, DataError, "none of its 3 tasks can be used.*longest input has"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    flags: dict[str, Any], error: type[MhrError], said: str, settings: Make, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said) as caught:
        pretrain(settings(**flags), str(tmp_path / "run"), progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_truncated_inputs_are_counted(settings: Make, tmp_path: Path) -> None:
    run = pretrain(settings(steps=1, max_input_length=4), str(tmp_path / "run"), progress=False)
    assert 0 < run.info["truncated"]["cut"] <= run.info["truncated"]["of"]


def test_the_trained_adapter_loads_on_its_base(settings: Make, tmp_path: Path) -> None:
    run = pretrain(settings(steps=2), str(tmp_path / "run"), progress=False)
    model, _ = load_checkpoint(run.adapter)
    assert model.mhr.tasks == run.info["tasks"]
    assert all(torch.equal(t, read_adapter(run.adapter).tensors[name]) for name, t in model.mhr.tensors().items())


def test_what_was_truncated_is_told_by_task(settings: Make, tmp_path: Path) -> None:
    run = pretrain(settings(steps=2, max_input_length=4), str(tmp_path / "run"), progress=False)
    truncated = run.info["truncated"]
    parts = truncated["tasks"].values()
    assert sum(part["cut"] for task in parts for part in task.values()) == truncated["cut"] > 0
    assert all(0 < part["cut"] <= part["of"] for task in parts for part in task.values())
