"""Hugging Face datasets: by hub id ("owner/name"), or a folder written by `save_to_disk`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mhr.data.example import TaskCollection
from mhr.data.reading import Faults, ReadOptions, finish, readers
from mhr.data.rows import RowReader
from mhr.errors import DataError


@readers.register("datasets")
def read_datasets(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    """Every split of the data set. Class labels become texts, and their names the choices.

    Rows without a task column are one task, called after the data set. A split whose labels are all withheld (-1) is
    left out and noted. Fault lines count rows of their split from 1.
    """
    splits = _load(path, options.subset)
    name = "-".join(filter(None, (path.rstrip("/").rsplit("/", 1)[-1], options.subset)))
    notes: list[str] = []
    features = next(iter(splits.values())).features
    column = options.column_map.get("targets", "targets")
    labels = tuple(getattr(features.get(column), "names", None) or ())
    rows = RowReader(options, faults, labels)
    for split, table in splits.items():
        if labels and set(table[column]) == {-1}:
            notes.append(f"{name}: the labels of split {split!r} are withheld, so it was left out")
            continue
        for number, row in enumerate(table, 1):
            rows.add(row, f"{path}[{split}]", number, task=name, split=split)
    return finish(path, rows.finish(notes), notes, faults)


def _load(path: str, subset: str | None) -> dict[str, Any]:
    """Split name -> table."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{path}: this data set needs the package datasets: pip install datasets") from error
    try:
        loaded = datasets.load_from_disk(path) if Path(path).is_dir() else datasets.load_dataset(path, subset)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be loaded as a Hugging Face data set: {reason}") from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
