"""One door to every format: find the reader that fits a path, and read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import mhr.data.hub
import mhr.data.superni
import mhr.data.tables  # noqa: F401  (each registers its readers)
from mhr.data.example import TaskCollection
from mhr.data.reading import Faults, ReadOptions, readers
from mhr.data.skills import skills_suite
from mhr.data.templates import read_templates, reword
from mhr.errors import ConfigError, DataError


def load_tasks(
    path: str | Path,
    *,
    reader: str | None = None,
    max_train: int | None = None,
    limit_test: int = 100,
    definitions: bool = True,
    positives: int = 0,
    column_map: Mapping[str, str] | None = None,
    split_list: str | None = None,
    subset: str | None = None,
    seed: int = 0,
    template: str | None = None,
    faults: Faults | None = None,
) -> TaskCollection:
    """The tasks at `path`: "builtin:skills", a Super-NaturalInstructions folder, a .jsonl or .parquet file or a folder
    of them, a folder written by datasets' save_to_disk, or the hub id of a data set.

    reader       name of the reader, where the one found by the path is not meant
    max_train    at most this many training examples a task, drawn by `seed`; None keeps all (400 of builtin:skills)
    limit_test   at most this many evaluation examples a task, the first ones
    definitions  Super-NaturalInstructions: put the task's definition before each input
    positives    Super-NaturalInstructions: put this many solved examples before each input
    column_map   rows: our column -> theirs, {"input": "question", "targets": "answer", "task": "subject"}
    split_list   Super-NaturalInstructions: folder of splits/ that says what is held out; None takes "default"
    subset       hub: the data set's configuration ("sst2" of "nyu-mll/glue")
    seed         of the draw by `max_train`, and of the suite's strings
    template     prompt templates, a YAML file or a packaged name, see `mhr.data.templates`
    faults       where faults are told; None raises a DataError on the first one

    Raises DataError where nothing can be read or something is wrong with it, ConfigError for options out of range.
    """
    options = ReadOptions(
        max_train,
        limit_test,
        definitions,
        positives,
        dict(column_map or {}),
        split_list,
        subset,
        seed,
        None if template is None else read_templates(template),
    )
    faults = faults or Faults()
    name = reader or find_reader(str(path))
    collection = readers[name](str(path), options, faults)
    # Readers of rows put each row into words as they read it, while they hold its columns.
    return reword(collection, options.templates) if options.templates and name not in ROWS else collection


def find_reader(path: str) -> str:
    """The name of the reader that fits a path; DataError where none does, ConfigError for an unknown built-in."""
    root = Path(path)
    if path.startswith("builtin:"):
        if path != "builtin:skills":
            raise ConfigError(f"unknown built-in collection {path!r}: did you mean 'builtin:skills'?")
        return "skills"
    if root.is_file():
        endings = {".jsonl": "jsonl", ".parquet": "parquet"}
        if root.suffix not in endings:
            raise DataError(
                f"{path}: cannot tell the format of a {root.suffix or 'nameless'} file: expected .jsonl or .parquet"
            )
        return endings[root.suffix]
    if root.is_dir():
        for name, mark in _MARKS.items():
            if any(next(root.glob(m), None) for m in mark):
                return name
        held = "is an empty folder" if next(root.iterdir(), None) is None else "is a folder of no known layout"
        raise DataError(f"{path}: {held}: expected tasks/*.json, *.jsonl, *.parquet or what save_to_disk writes")
    # "data/tasks" may be a hub id or a folder that is missing; beside other folders it is taken for the second.
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) and not root.parent.is_dir():
        return "datasets"
    raise DataError(f"{path}: no such file or folder, and no hub id of the form owner/name")


ROWS = ("jsonl", "parquet", "datasets")

_MARKS = {
    "superni": ("tasks/*.json", "splits"),
    "datasets": ("dataset_info.json", "dataset_dict.json", "state.json"),
    "jsonl": ("*.jsonl",),
    "parquet": ("*.parquet",),
}


@readers.register("skills")
def _read_skills(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    return skills_suite(options.seed, 400 if options.max_train is None else options.max_train, options.limit_test)
