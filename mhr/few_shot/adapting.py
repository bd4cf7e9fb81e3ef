"""Few-shot adaptation: from a pretraining run to unseen tasks, one adapted checkpoint per task and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mhr.data import TaskCollection
from mhr.data.choice_collators import beginnings
from mhr.errors import ConfigError, DataError, TrainingError, nearest
from mhr.few_shot.jobs import Job, check_batches, frozen_heap, ranks, run_job, steps_of
from mhr.few_shot.selecting import read_dev, share_out
from mhr.few_shot.starts import check_mode, load_start
from mhr.files import folder_name, make_folder, prepare_output, read_json, write_json_atomically
from mhr.locks import one_writer
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.config import differences, to_dict
from mhr.runs.run import RunFolder, clear
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import read_tasks, usable_tasks
from mhr.training.processes import check_precision, processes
from mhr.training.watch import ProgressBar

ADAPT_FILE = "adapt.json"


@one_writer
def adapt(
    run: str,
    tasks: Sequence[str] | None = None,
    *,
    mode: str,
    output: str,
    tasks_path: str | None = None,
    template: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    **few: Any,
) -> list[RunFolder]:
    """Adapt the pretraining run in the folder `run` to each of `tasks` with each of the seeds, from a few examples.

    mode         loaded                                                     trained
    mhr (poly)   the bank, a fresh routing row for the task                 both
    z            the same                                                   that row
    mu           the bank's uniform factor average: one plain LoRA          that LoRA
    lora         the shared adapter                                         that adapter
    full         the backbone                                               all of it (at `lr`, or AdaptConfig.full_lr)
    random       a fresh bank with the run's settings, a fresh row          both

    tasks        names; None takes every held-out task that the model can be trained on
    tasks_path   another collection than the run's
    template     other prompt templates than the run's
    resume       skip what is done in `output` already; tasks that are not named now stay listed there
    few          fields of AdaptConfig (shots, seeds, steps, lr, grid, protocol ...); None and what is not given are as the
                 run's `adapt` settings say

    Without a grid and without a look for the best step, each adaptation is one training, and its last step counts. With
    one, the protocol says what is chosen on: `mhr.few_shot.selecting.share_out`.

    Returns the run folders OUTPUT/TASK/SEED, task by task; OUTPUT/adapt.json lists them, and each run.json says the protocol
    and how it was chosen. Shots are drawn by `mhr.few_shot.shots.draw_shots`, the same for all modes and methods. Raises
    MhrError for settings, tasks or folders that do not fit, before anything is written; TrainingError for a loss that is not
    finite; Interrupted on Ctrl-C.
    """
    if processes().num_processes > 1:
        raise ConfigError("adapt runs in one process: start it without torchrun")
    source = RunFolder.open(run)
    config = few_shot_settings(source.config(), tasks_path, template, few)
    mode = check_mode(mode, config, run)
    check_precision(config.train.precision)
    if not (resume and Path(output).is_dir() and any(Path(output).iterdir())):
        prepare_output(output, overwrite)
    described = {
        "mode": mode,
        "source": str(source.path.resolve()),
        "settings": to_dict(config)["adapt"],
        "tasks": config.tasks,
        "template": config.data.template,
    }
    if resume:
        _check_same(Path(output), described)
    source.result()
    collection = named_tasks(config, tasks)
    dev = read_dev(config)
    start = load_start(source, config, mode)
    kind = source.info["model_kind"]
    collection, left_out = fitting_tasks(collection, tasks is not None, kind, start.tokenizer, config)
    jobs = [
        Job(
            task,
            seed,
            share_out(task, config.adapt, seed, mode, dev),
            Path(output) / folder_name(task.name) / str(seed),
        )
        for task in collection.values()
        for seed in config.adapt.seeds
    ]
    check_batches(jobs, config, kind, start)
    folder = make_folder(output)
    if overwrite and not resume:
        clear(folder)
    described["left_out"] = left_out
    described["notes"] = ranking_notes(collection) if kind != "encoder" and ranks(config, mode) else []
    described["runs"] = [{"task": j.task.name, "seed": j.seed, "path": str(j.folder.relative_to(folder))} for j in jobs]
    write_json_atomically(folder / ADAPT_FILE, _with_earlier(folder, described))
    steps = sum(steps_of(job, config, mode) for job in jobs)
    with ProgressBar(steps, f"adapt {mode}", progress) as bar, frozen_heap():
        return [run_job(job, start, config, source, bar) for job in jobs]


def few_shot_settings(
    config: RunConfig, tasks_path: str | None, template: str | None, few: dict[str, Any]
) -> RunConfig:
    """The settings of a run with other few-shot ones. Raises ConfigError for an unknown one."""
    known = [f.name for f in dataclasses.fields(AdaptConfig)]
    for name in few:
        if name not in known:
            raise ConfigError(f"unknown few-shot setting {name!r}: {nearest(name, known)}")
    given = {name: value for name, value in few.items() if value is not None}
    if "lr" in given:
        given.setdefault("full_lr", given["lr"])
    data = config.data if template is None else dataclasses.replace(config.data, template=template)
    return dataclasses.replace(
        config, tasks=tasks_path or config.tasks, data=data, adapt=dataclasses.replace(config.adapt, **given)
    )


def named_tasks(config: RunConfig, names: Sequence[str] | None) -> TaskCollection:
    """The tasks of a collection by their names, or those that it holds out. Raises TaskError and DataError."""
    collection = read_tasks(config.tasks, config.data)
    for name in config.adapt.shots_for:
        if not set(name) & set("*?["):
            collection[name]  # a name that is no pattern and no task is a slip of the pen
    if names is not None:
        return collection.select(list(dict.fromkeys(names)))
    held_out = collection.held_out()
    if not len(held_out):
        raise DataError(f"{config.tasks} holds no task out: name the tasks to adapt to")
    return held_out


def fitting_tasks(
    collection: TaskCollection, named: bool, kind: str, tokenizer: PreTrainedTokenizerBase | None, config: RunConfig
) -> tuple[TaskCollection, dict[str, str]]:
    """The tasks that the model can be trained on, and why others are left out; an error where those were asked for by name."""
    data = dataclasses.replace(config.data, fit=config.data.fit and not named)
    kept, left_out = usable_tasks(collection, kind, tokenizer, data)
    if named and left_out:
        name, reason = next(iter(left_out.items()))
        raise DataError(f"cannot adapt to task {name!r}: {reason}")
    return kept, left_out


def ranking_notes(collection: TaskCollection) -> list[str]:
    """A line for every task on whose choices a ranking loss has a hard time."""
    notes = []
    for task in collection.values():
        pair = next(filter(None, (beginnings(example) for example in task.train)), None)
        if pair is not None:
            notes.append(
                f"task {task.name!r}: choice {pair[0]!r:.40} is the beginning of choice {pair[1]!r:.40}; only the end token "
                "tells them apart, and unlikely_loss pushes against both"
            )
    return notes


def _with_earlier(folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    """What adapt.json says of `described` adaptations and of earlier ones of other tasks in the same folder."""
    if not (folder / ADAPT_FILE).is_file():
        return described
    before = read_json(folder / ADAPT_FILE, TrainingError)
    earlier = [run for run in before.get("runs", []) if run not in described["runs"]]
    return described | {
        "left_out": before.get("left_out", {}) | described["left_out"],
        "notes": list(dict.fromkeys([*before.get("notes", []), *described["notes"]])),
        "runs": [*earlier, *described["runs"]],
    }


def _check_same(folder: Path, described: dict[str, Any]) -> None:
    """Raise TrainingError where `folder` holds adaptations that were made in another way."""
    if not (folder / ADAPT_FILE).is_file():
        return
    before = read_json(folder / ADAPT_FILE, TrainingError)
    changed = [
        f"{key.replace('settings.', 'adapt.')} {one!r}, not {other!r}"
        for key in described
        for key, one, other in differences({key: before.get(key)}, {key: described[key]})
    ]
    if changed:
        raise TrainingError(
            f"{folder} holds adaptations with {'; '.join(changed)}: resume them with the same settings, or choose another "
            "output folder"
        )
