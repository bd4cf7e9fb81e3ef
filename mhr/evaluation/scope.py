"""What a model is to be judged on: a collection read as its run read it, and the tasks of it that are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mhr.data import TaskCollection
from mhr.errors import ConfigError, DataError
from mhr.runs.config import assignments, load_config
from mhr.runs.run import RUN_FILE, RunFolder
from mhr.runs.scoring import ScopeConfig
from mhr.runs.tasks import read_tasks
from mhr.runs.unused import refuse_unused

OF_TRAINING = ("max_input_length", "max_target_length", "sampler", "temperature", "max_per_task", "fit", "max_choices")
"""Settings of the section data that decide how a model is trained, and nothing of what is read."""


def tasks_to_judge(
    model: str | Path,
    *,
    tasks: str | None = None,
    names: Sequence[str] | None = None,
    part: str | None = None,
    overrides: Sequence[str] = (),
    on_bad_row: str | None = None,
    prompt: str | None = None,
    verbalizers: Mapping[str, str] | None = None,
) -> TaskCollection:
    """The tasks that the run, adapter or model at `model` is judged on.

    tasks      the collection; None takes that of the run
    names      tasks of the collection; None: those of `part`
    part       "held-out", "training" or "all" tasks. None: the task of an adapted run, otherwise the held-out tasks, or all
               where the collection holds none out
    overrides  settings of the section data, as in "data.definitions=false", over those of the run; on_bad_row, prompt and
               verbalizers are some of them

    Raises ConfigError for settings that are unknown or do not go together, DataError for a collection that cannot be read
    or has no such part, TaskError for an unknown name.
    """
    ScopeConfig(None if names is None else list(names), part)
    if part is not None and names is not None:
        raise ConfigError(f"both task names and part {part!r} are given: leave one out")
    held = any((Path(model) / name).is_file() for name in (RUN_FILE, "adapt.json"))
    run = RunFolder.open(model) if held else None
    if tasks is None and run is None:
        missing = "" if Path(model).exists() or str(model).startswith("builtin:") else " (there is no such folder here)"
        raise ConfigError(
            f"no task collection is given, and {model}{missing} is no run that names one: expected, for example, builtin:skills"
        )
    file = run.path / "config.yaml" if run else None
    config = load_config(
        file,
        overrides=overrides,
        tasks=tasks or None,
        on_bad_row=on_bad_row,
        prompt=prompt,
        verbalizers=verbalizers,
    )
    for key in map(_key, overrides):
        if not key.startswith("data.") or key.removeprefix("data.") in OF_TRAINING:
            raise ConfigError(
                f"{key} is set, which has no effect here: expected a setting of how the collection is read, such as "
                "data.definitions=false"
            )
    refuse_unused(assignments(overrides), config)
    collection = read_tasks(config.tasks, config.data)
    if names is None and part is None and run is not None and run.info.get("kind") == "adapt":
        names = run.info["tasks"]
    if names is not None:
        return collection.select(list(names))
    held_out = collection.held_out()
    if part == "held-out" and not held_out:
        raise DataError(f"{collection.source} has no held-out tasks: expected part 'all' or 'training'")
    if part == "training":
        return collection.training()
    return held_out if held_out and part != "all" else collection


def _key(text: str) -> str:
    return text.partition("=")[0].strip()
