"""The folder of a run that begins or goes on, and what a run may be resumed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from accelerate import PartialState

from mhr.errors import MhrError, TrainingError
from mhr.files import held_in
from mhr.runs.checkpoints import newest_complete, step_of
from mhr.runs.config import flat, to_dict
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig
from mhr.task_heads import RANK, TaskHeads
from mhr.training.processes import raise_together

# Settings that a resumed run may change, because they do not decide what it computes.
FREE = {
    *("train.save_every", "train.keep_checkpoints", "train.log_every", "train.report_to", "train.fsdp"),
    *("data.workers", "data.cache", "adapt"),
}

OF_DATA = {
    "tasks": "the tasks",
    "head": "the heads",
    "examples": "a number of examples of",
    "data": "examples of which the digest is",
}
"""What run.json says of the collection that decides what a resumed run computes, in words."""


def open_run(
    config: RunConfig, output: str, state: PartialState, resume: bool, overwrite: bool, facts: Mapping[str, Any]
) -> tuple[RunFolder, Path | None]:
    """The run folder, made by the main process, and the checkpoint to go on from. facts: what run.json is to say of the run.

    Raises TrainingError for a run that was begun with other settings, or on other tasks, heads or examples.
    """
    begun = resume and bool(held_in(output))  # before the main process makes the folder of a run that begins
    state.wait_for_everyone()
    error = None
    if state.is_main_process:
        try:
            run = RunFolder.create(output, overwrite=overwrite, resume=resume)
            if run.info:
                _check_same(config, run, state.num_processes)
                if run.status != "done":
                    _check_same_data(config, run, facts)
        except MhrError as refused:
            error = refused
    raise_together(error)
    if not state.is_main_process:
        run = RunFolder.open(output) if begun else RunFolder(output, {})
    if not run.info or run.status == "done":
        return run, None
    checkpoint, skipped = newest_complete(run.checkpoints)
    if state.is_main_process:
        run.forget_after(0 if checkpoint is None else step_of(checkpoint))
        run.write(skipped=skipped, resumed_from=None if checkpoint is None else checkpoint.name)
    return run, checkpoint


def _check_same_data(config: RunConfig, run: RunFolder, facts: Mapping[str, Any]) -> None:
    for name, what in OF_DATA.items():
        before, now = run.info.get(name), facts.get(name)
        if name in run.info and before != now:
            raise TrainingError(
                f"run {run.path} was begun with {what} {_told(before)}, and {config.tasks} now gives {_told(now)}: make the collection what "
                "it was, or choose another output folder"
            )


def _told(fact: Any) -> str:
    if isinstance(fact, dict):
        heads = TaskHeads.from_json(fact, "run.json")
        fact = [f"{task}: {heads.heads[number]}" for task, number in heads.tasks.items()]
    return shorten(", ".join(fact) if isinstance(fact, list) else str(fact), 200, placeholder=" ...")


def as_begun(config: RunConfig, output: str) -> RunConfig:
    """The settings with the head of the run that is resumed, where they leave it open: earlier releases always ranked."""
    ranked = config.head == "auto" and held_in(output) and RunFolder.open(output).config().head == RANK
    return replace(config, head=RANK) if ranked else config


def _check_same(config: RunConfig, run: RunFolder, n_processes: int) -> None:
    """Raise TrainingError where a run is resumed with settings that it was not started with. With another number of processes its
    global batch has to be the same, in whichever parts."""
    before, now = flat(to_dict(run.config())), flat(to_dict(config))
    free = FREE
    n_before = run.info["processes"]
    if n_processes != n_before:
        each, each_now = (s["train.batch_size"] * s["train.accumulation"] for s in (before, now))
        total = run.info.get("global_batch", each * n_before)
        if each_now * n_processes != total:
            raise TrainingError(
                f"run {run.path} has a global batch of {total} examples, and {n_processes} processes with batch_size x "
                f"accumulation = {each_now} make {each_now * n_processes}: set them so that the product of the three stays {total}"
            )
        beside, beside_now = before["train.batch_size"] * n_before, now["train.batch_size"] * n_processes
        if config.data.group_by_length and beside != beside_now:
            raise TrainingError(
                f"run {run.path} groups examples by length, {beside} of which stand side by side, and {n_processes} processes with batch_size "
                f"{now['train.batch_size']} make {beside_now}, in another order: set batch_size so that the product of the two stays {beside}"
            )
        free = FREE | {"train.batch_size", "train.accumulation"}
    for key in sorted(before.keys() | now.keys()):
        if key in free or key.partition(".")[0] in free or before.get(key) == now.get(key):
            continue
        raise TrainingError(
            f"run {run.path} was started with {key} = {before.get(key)!r}, not {now.get(key)!r}: resume it with its own "
            f"settings (--config {run.path / 'config.yaml'}) or choose another output folder"
        )
