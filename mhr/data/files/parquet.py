"""Parquet: one row an example; fault lines count rows from 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mhr.data.files.format import RowTable, reads_files
from mhr.data.opening import FileFault, read_bytes


@reads_files("parquet", ".parquet")
def read_parquet(file: Path) -> RowTable:
    """The rows of a Parquet file, and the names of labels where Hugging Face's datasets wrote them beside."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise FileFault(0, "Parquet files need the package pyarrow: pip install pyarrow") from None
    try:
        source = file if file.suffix.lower() == ".parquet" else pyarrow.BufferReader(read_bytes(file))
        with pyarrow.parquet.ParquetFile(source) as table:
            return RowTable(_rows(source), _labels(table.schema_arrow.metadata or {}))
    except (pyarrow.ArrowException, OSError) as error:
        raise FileFault(0, f"is not a readable Parquet file: {str(error).splitlines()[0]}") from None


def _rows(source: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise FileFault(number + 1, f"is not a readable Parquet file: {str(error).splitlines()[0]}") from None


def _labels(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Column -> names of its class labels, from the features that datasets keeps in a file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {c: tuple(f["names"]) for c, f in features.items() if isinstance(f, dict) and "names" in f}
    except (KeyError, TypeError, ValueError):
        return {}
