"""The task collection of a run's settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from mhr.data import TaskCollection, load_tasks
from mhr.errors import ConfigError, DataError
from mhr.runs.data_settings import DataConfig

_log = logging.getLogger("mhr")
_told: set[str] = set()

NO_TASKS = ""
"""What a run calls its collection that does not know it, as one that was imported."""


def read_tasks(path: str, data: DataConfig, *, quiet: bool = False) -> TaskCollection:
    """The collection at `path`, read as `data` says. The notes of its reader are logged, unless `quiet`."""
    if path == NO_TASKS:
        raise ConfigError("the run does not know the tasks that it was trained on: name a collection with --tasks")
    collection = load_tasks(
        path,
        max_train=data.max_train,
        train_seed=data.train_seed,
        max_test=data.max_test,
        definitions=data.definitions,
        definition_form=data.definition_form,
        positives=data.positives,
        column_map=data.column_map,
        split_list=data.split_list,
        subset=data.subset,
        template=data.template,
        prompt=data.prompt,
        verbalizers=data.verbalizers,
        on_bad_row=data.on_bad_row,
    )
    if not quiet:
        tell(f"{path}: {note}" for note in collection.notes)
    return collection


def read_training_tasks(path: str, data: DataConfig) -> TaskCollection:
    """The tasks of the collection that pretraining may see. Raises DataError where all are held out."""
    collection = read_tasks(path, data)
    training = collection.training()
    if not training:
        raise DataError(
            f"{path}: all of its {len(collection)} tasks are held out, as {next(iter(collection))!r} is, and pretraining sees none of these: "
            "set held_out to false in the rows of those to train on, or name them in a split list (data.split_list)"
        )
    return training


def tell(lines: Iterable[str]) -> None:
    """Say each line once, on the logger "mhr", which prints to standard error by default; of several processes the first does."""
    for line in lines:
        if line not in _told and os.environ.get("RANK", "0") == "0":
            _told.add(line)
            _log.warning(line)
