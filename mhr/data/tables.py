"""JSONL and Parquet: one file, or a folder of files that make one collection together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mhr.data.example import TaskCollection
from mhr.data.reading import Faults, ReadOptions, finish, read_text, readers
from mhr.data.rows import SPLITS, RowReader
from mhr.errors import DataError


@readers.register("jsonl")
def read_jsonl(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    """One JSON object a line."""
    rows = RowReader(options, faults)
    for file in _files(path, ".jsonl", faults):
        for line, text in enumerate((read_text(file, faults) or "").split("\n"), 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                faults.add(
                    file, line, f"is not valid JSON: {error.msg} at column {error.colno}; expected one object a line"
                )
                continue
            if not isinstance(row, dict):
                faults.add(file, line, f"expected a JSON object, got {text.strip():.60}")
                continue
            rows.add(row, str(file), line, *_task_and_split(file))
    return _collect(path, rows, faults)


@readers.register("parquet")
def read_parquet(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    """One row an example; fault lines count rows from 1."""
    rows = RowReader(options, faults)
    for file in _files(path, ".parquet", faults):
        for number, row in enumerate(_parquet_rows(file, faults), 1):
            rows.add(row, str(file), number, *_task_and_split(file))
    return _collect(path, rows, faults)


def _parquet_rows(file: Path, faults: Faults) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{file}: Parquet files need the package pyarrow: pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        faults.add(file, 0, f"is not a readable Parquet file: {str(error).splitlines()[0]}")


def _task_and_split(file: Path) -> tuple[str, str]:
    """What a file's name says where its rows do not: "train.jsonl" is a split of its folder's task, others a task."""
    return (file.absolute().parent.name, file.stem) if file.stem in SPLITS else (file.stem, "")


def _files(path: str, ending: str, faults: Faults) -> list[Path]:
    root = Path(path)
    if root.is_file():
        return [root]
    files = sorted(root.glob(f"*{ending}"))
    if not files:
        faults.add(root, 0, f"holds no {ending} file")
    return files


def _collect(path: str, rows: RowReader, faults: Faults) -> TaskCollection:
    notes: list[str] = []
    return finish(path, rows.finish(notes), notes, faults)
