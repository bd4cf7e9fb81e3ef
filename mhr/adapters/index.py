"""A folder of adapters, one for each task, as `mhr merge --each-task` writes it, by what its INDEX_FILE says."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mhr import __version__
from mhr.errors import CheckpointError, TaskError, nearest
from mhr.files import INDEX_FILE, INDEX_FORMAT, folder_name, is_index, read_json, write_json_atomically

INDEX_VERSION = 1

MOST_FOLDER = 200
"""Most bytes of a folder's name: it has another one while it is written, which is longer."""

PREFIXES = ("lora_", "ia3_")
"""PEFT takes no name of an adapter that is a part of one of these for one."""


@dataclass
class AdapterIndex:
    """What the index says.

    status     "running", or "done" once every folder stands
    made_with  what the folders were made of and how: two merges with the same write the same
    form       of the folders, one of `mhr.merging.FORMS`; kind: as `AdapterConfig.adapter` names it
    source     the bank, as it was named; method: its routing method
    base       name of the base model; base_kind: what it is asked to do; revision: of it on the hub, None for its main one;
               commit: of it on the hub, as it was here, None where that is not known
    modules    modules that every folder brings whole
    tasks      task -> "folder", "rank" and "alpha" (None where the adapter has none), "category", and "score", with "metric", "n" and
               "limit", where one was computed: by this merge, of what it wrote, or earlier, of the run ("of": "merged" or "run")
    average    the same of the average of the bank's skills, {} without one
    remarks    what programs that read the folders have to know
    """

    status: str
    made_with: dict[str, Any]
    form: str
    kind: str
    source: str
    method: str
    base: str
    base_kind: str
    revision: str | None
    commit: str | None
    modules: list[str]
    tasks: dict[str, dict[str, Any]]
    average: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Of every task, and of the average, if there is one."""
        return [*self.tasks.values(), *([self.average] if self.average else [])]

    @property
    def folders(self) -> list[str]:
        """The folder of each task, and that of the average, if there is one."""
        return [entry["folder"] for entry in self.entries]

    @property
    def rank(self) -> int | None:
        """The highest rank of all folders, None where they have none."""
        return max((entry["rank"] for entry in self.entries if entry.get("rank")), default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": INDEX_FORMAT,
            "format_version": INDEX_VERSION,
            "mhr_version": __version__,
            **asdict(self),
        }

    def write(self, folder: str | Path) -> None:
        write_json_atomically(Path(folder) / INDEX_FILE, self.to_json())


def read_index(folder: str | Path) -> AdapterIndex:
    """The index in a folder. Raises CheckpointError where there is none, or one that is damaged or too new."""
    file = Path(folder) / INDEX_FILE
    found = read_json(file, CheckpointError)
    if found.pop("format", None) != INDEX_FORMAT:
        raise CheckpointError(f"{file} is no index of adapters: expected what mhr merge --each-task writes")
    version, writer = found.pop("format_version", None), found.pop("mhr_version", None)
    if version != INDEX_VERSION:
        raise CheckpointError(
            f"{file} has format {version!r}, written by mhr {writer}; this is mhr {__version__}, which reads format {INDEX_VERSION}: "
            "install the newer one"
        )
    expected = {f.name for f in fields(AdapterIndex)}
    try:
        differ = sorted(expected ^ found.keys())
        index = AdapterIndex(**{name: found[name] for name in expected})
        _ = index.folders
    except (TypeError, KeyError, AttributeError):
        what = f" ({', '.join(differ)})" if differ else ""
        raise CheckpointError(f"{file} does not describe adapters{what}: merge again with --overwrite") from None
    return index


def check_no_index(path: str | Path) -> None:
    """Raise CheckpointError, naming folders, where a path holds one adapter for each task and none of them is meant."""
    if is_index(path):
        index = read_index(path)
        named = ", ".join(index.folders[:3]) + (", ..." if len(index.folders) > 3 else "")
        raise CheckpointError(
            f"{path} holds {len(index.folders)} adapters, one for each task: name the folder of one, such as "
            f"{Path(path) / index.folders[0]} (there are {named})"
        )


def folder_of(path: str | Path, task: str) -> Path:
    """The folder of a task's adapter. Raises TaskError for a task that the index lacks, CheckpointError where there is no index or the
    folder is missing."""
    if not is_index(path):
        raise CheckpointError(
            f"{path} is no folder with an adapter for each task, so no task of it can be meant: leave task out"
        )
    index = read_index(path)
    if task not in index.tasks:
        raise TaskError(f"unknown task {task!r} of {path}: {nearest(task, index.tasks)}")
    folder = Path(path) / index.tasks[task]["folder"]
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: go on with the mhr merge --each-task that wrote its index")
    return folder


def folders_for(tasks: Sequence[str], *others: str) -> dict[str, str]:
    """Task -> name of its folder, which is none of `others`.

    A name serves as an adapter's name in PEFT and on servers too: what a path would read otherwise, and dots, are written as %XX.
    Names that are the same but for upper and lower case, which some file systems and hubs take for one, and those that PEFT refuses,
    end in "%~" and digits of the task's digest, which no other name does.
    """
    plain = {task: folder_name(task, most=MOST_FOLDER, dots=False) for task in tasks}
    times = Counter([*(name.casefold() for name in plain.values()), *(other.casefold() for other in others)])
    return {
        task: f"{name}%~{hashlib.sha256(task.encode()).hexdigest()[:10]}"
        if times[name.casefold()] > 1 or any(name in prefix for prefix in PREFIXES)
        else name
        for task, name in plain.items()
    }
