"""Hugging Face datasets: by hub id ("owner/name"), or a folder written by `save_to_disk`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mhr.data.columns import look_up
from mhr.data.example import TaskCollection
from mhr.data.faults import Faults, Notes
from mhr.data.reading import ReadOptions, finish, reads
from mhr.data.rows import RowReader
from mhr.data.splits import split_of
from mhr.errors import DataError

SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` wrote."""


def is_dataset(path: str) -> bool:
    """Whether a path is a folder that `save_to_disk` wrote, or a hub id: "data/tasks" is one unless the folder data exists."""
    root = Path(path)
    if root.is_dir():
        return any((root / name).is_file() for name in SAVED)
    return not root.exists() and bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", path)) and not root.parent.is_dir()


@reads(
    "datasets",
    is_dataset,
    "a dataset that save_to_disk wrote, or its hub id owner/name",
    uses=("column_map", "subset", "max_test"),
    words=True,
)
def read_datasets(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    """Every split of the dataset whose name says what it is for. Class labels become strings, and their names the choices.

    Rows without a task column are one task, called after the dataset. Fault lines count rows of their split from 1.
    """
    splits = _load(path, options.subset)
    name = "-".join(filter(None, (path.rstrip("/").rsplit("/", 1)[-1], options.subset)))
    notes = Notes()
    rows = RowReader(options, faults)
    for split in _meant(path, list(splits), faults, notes):
        known = split_of(split) is not None
        rows.begin(f"{path}[{split}]", "Hugging Face dataset", name, split if known else "")
        features = splits[split].features
        named = {**features, rows.columns["targets"]: look_up(features, rows.columns["targets"])}
        rows.labels = {column: tuple(names) for column, f in named.items() if (names := getattr(f, "names", None))}
        for number, row in enumerate(splits[split], 1):
            rows.add(row, number)
    return finish(path, rows.finish(notes), notes, faults, rows.recognised)


def _meant(path: str, splits: list[str], faults: Faults, notes: Notes) -> Iterable[str]:
    """The splits that are read: those of known names, or one alone whatever its name."""
    known = [split for split in splits if split_of(split)]
    unknown = [split for split in splits if not split_of(split)]
    if not known and len(unknown) > 1:
        shown = ", ".join(map(repr, unknown[:6]))
        faults.add(
            path, 0, f"cannot tell what its splits {shown} are for: expected names such as train, validation and test"
        )
        return ()
    if known and unknown:
        what = "splits whose names tell neither training, validation nor test were left out"
        notes.add(f"{what}: {', '.join(unknown[:6])}")
    return known or unknown


def _load(path: str, subset: str | None) -> dict[str, Any]:
    """Split name -> table."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{path}: this dataset needs the package datasets: pip install datasets") from error
    try:
        loaded = datasets.load_from_disk(path) if Path(path).is_dir() else datasets.load_dataset(path, subset)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be loaded as a Hugging Face dataset: {reason}") from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
