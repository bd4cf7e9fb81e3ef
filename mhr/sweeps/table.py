"""The table of a sweep: a row for each adaptation, appended whole as it ends, read again by a resumed sweep, and summed up."""

from __future__ import annotations

import io
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.errors import TrainingError
from mhr.files import write_bytes_atomically, writing

Row = dict[str, Any]


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The adaptation that a row is about: the short name of its run, mode, task, seed."""
    return row["run"], row["mode"], row["task"], row["seed"]


@dataclass(frozen=True)
class SweepResult:
    """rows: what results.jsonl holds, one an adaptation, in the order asked for; notes: what was left out, and why."""

    path: Path
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row["status"] == "failed"]

    def summary(self) -> list[Row]:
        """By run, mode and task, and over all tasks (task None): mean of the score over seeds, its standard deviation, and n.

        The deviation over all tasks is that of the seeds' means. Adaptations that have failed are left out.
        """
        done = [row for row in self.rows if row["status"] == "done"]
        means_of = []
        for run, mode in dict.fromkeys((row["run"], row["mode"]) for row in done):
            group = [row for row in done if (row["run"], row["mode"]) == (run, mode)]
            for task in dict.fromkeys(row["task"] for row in group):
                scores = [row["score"] for row in group if row["task"] == task]
                means_of.append({"run": run, "mode": mode, "task": task, **_spread(scores)})
            seeds = dict.fromkeys(row["seed"] for row in group)
            means = [statistics.fmean(row["score"] for row in group if row["seed"] == seed) for seed in seeds]
            means_of.append({"run": run, "mode": mode, "task": None, **_spread(means)})
        return means_of


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line, on the disk when it returns: a kill leaves all of it or a cut last line."""
    line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with writing(path), open(path, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The rows as a Parquet table, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    # Rows that failed lack columns, and trials have the hyperparameters of their mode only.
    plain = [{key: json.dumps(value) if key == "trials" else value for key, value in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in plain for name in row))
    table = pyarrow.table({name: [row.get(name) for row in plain] for name in names})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    write_bytes_atomically(path, buffer.getvalue())


def read_rows(path: Path) -> dict[tuple[Any, ...], Row]:
    """The last row of each adaptation. A line that a kill has cut is taken out of the file, so that the next one begins a line."""
    if not path.is_file():
        return {}
    whole, end, cut = path.read_bytes().rpartition(b"\n")  # bytes: a cut may go through a letter
    if cut:
        write_bytes_atomically(path, whole + end)
    rows = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            rows[key_of(row)] = row
        except (ValueError, KeyError, TypeError, RecursionError):
            raise TrainingError(
                f"{path}:{number} is no row of a sweep: the file was edited by hand; take the line out, or start over with "
                "--overwrite"
            ) from None
    return rows


def _spread(scores: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(scores) if len(scores) > 1 else None
    return {"mean": statistics.fmean(scores), "std": deviation, "n": len(scores)}
