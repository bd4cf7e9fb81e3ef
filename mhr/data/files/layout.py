"""Which files of a folder hold rows, and what their names and folders tell of task and split."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from mhr.data.files.format import format_of, stem_of
from mhr.data.splits import read_name, split_of

DEPTH = 3
"""Folders below the one that is named."""

NO_ROWS = (
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "manifest.json",
    "metadata.json",
    "package.json",
    "state.json",
)
"""JSON files that describe a folder."""

_PLAIN = ("data", "dataset", "default", "examples", "rows", "raw", "tasks", "jsonl", "json", "parquet", "csv", "tsv")
"""Names of files and folders that tell nothing of a task."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A file of rows: the task and split that its rows have where they name none ("" for no split)."""

    file: Path
    task: str
    split: str
    folder: Path
    """The folder that stands for the task's origin: two of them are never one task."""
    leading: bool = False


def place_files(root: Path) -> tuple[list[Placed], list[str]]:
    """The files of rows at `root`, a file or folder, sorted, and folders that were not read.

    The files that lie in the folder itself are its collection; where there are none, those of its sub-folders, at most DEPTH
    below. Hidden files and those of NO_ROWS are passed over.
    """
    if root.is_file():
        return _placed([root], root.parent), []
    files, folders = _entries(root)
    if files:
        # Looked at, since rows that lie beside would otherwise be left out silently.
        return _placed(files, root), [f.name for f in folders if _deep(f, DEPTH - 1)]
    return _placed([file for folder in folders for file in _deep(folder, DEPTH - 1)], root), []


def _deep(folder: Path, depth: int) -> list[Path]:
    files, folders = _entries(folder)
    return files + [file for inner in folders if depth for file in _deep(inner, depth - 1)]


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of rows and folders in a folder, sorted."""
    entries = sorted(folder.iterdir())
    shown = [e for e in entries if not e.name.startswith((".", "__"))]
    files = [e for e in shown if format_of(e) and e.name.lower() not in NO_ROWS and e.is_file()]
    return files, [e for e in shown if e.is_dir() and not e.is_symlink()]


def _placed(files: list[Path], root: Path) -> list[Placed]:
    placed = _tasks_or_words([_place(file, root) for file in files])
    folders: dict[str, set[Path]] = defaultdict(set)
    for place in placed:
        folders[place.task].add(place.folder)
    return [
        replace(p, task=f"{p.folder.name}-{p.task}") if len(folders[p.task]) > 1 and p.folder.name != p.task else p
        for p in placed
    ]


def _place(file: Path, root: Path) -> Placed:
    above = [] if file.parent == root else list(file.relative_to(root).parts[:-1])
    split = next((found for part in reversed(above) if (found := split_of(part))), "")
    while above and (above[-1].lower() in _PLAIN or split_of(above[-1])):
        above.pop()
    folder = root.joinpath(*above)
    owner = folder.absolute().name or "task"
    stem = stem_of(file)
    try:
        named = read_name(stem)
    except ValueError:
        # Only a column of its rows can say which split it is: as a name of one, this is an error of its first row.
        return Placed(file, owner, stem, folder)
    if named.split:
        return Placed(file, named.task or owner, named.split, folder, named.leading and bool(named.task))
    named_by_file = bool(named.task) and not (file.parent != root and named.task.lower() in _PLAIN)
    return Placed(file, named.task if named_by_file else owner, split, folder)


def _tasks_or_words(placed: list[Placed]) -> list[Placed]:
    """In "test_public" beside "train", "public" is a word on the split; in "test_sst2" beside "train_sst2" it is a task."""
    bare = {p.folder: p.task for p in placed if p.split and not p.leading and p.task == (p.folder.absolute().name)}
    return [replace(p, task=bare[p.folder]) if p.leading and p.folder in bare else p for p in placed]
