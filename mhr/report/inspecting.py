"""All that `mhr inspect` finds out about a run, in one call, and what it writes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.analysis.alignment import Alignment, align_run
from mhr.analysis.inspection import Inspection, inspect_run
from mhr.analysis.settings import InspectConfig
from mhr.analysis.transfer import Matrix, transfer_matrix
from mhr.errors import ConfigError
from mhr.evaluation.scope import tasks_to_judge
from mhr.files import make_folder, prepare_output, write_json_atomically
from mhr.loading import Loading
from mhr.locks import one_writer
from mhr.report.plots import save_plots

INSPECTION_FILE = "inspection.json"


@dataclass(frozen=True)
class RunInspection:
    """An inspected run: what it holds, the alignment of its tasks' gradients, the transfer between them, and the files written."""

    inspection: Inspection
    alignments: list[Alignment] = field(default_factory=list)
    transfer: Matrix = field(default_factory=dict)
    plots: list[Path] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What inspection.json holds."""
        alignments = [one.to_json() for one in self.alignments]
        return self.inspection.to_json() | {"alignment": alignments, "transfer": self.transfer}


@one_writer
def inspect_fully(
    run: str | Path,
    *,
    tasks: str | None = None,
    names: Sequence[str] | None = None,
    alignment: bool = False,
    examples: int | None = None,
    transfer: bool = False,
    limit: int | None = None,
    on_bad_row: str | None = None,
    base: str | None = None,
    loading: Loading | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> RunInspection:
    """Inspect a run as `mhr inspect` does: `inspect_run`, with `alignment` also `align_run`, with `transfer` `transfer_matrix`.

    tasks, names   the collection and tasks of these two; None takes the run's own, its training tasks
    examples       training examples of a task for the alignment (None: 16)
    limit          examples of a task for the transfer (None: 20)
    on_bad_row, base, loading   how these two read tasks, and load the base model
    output         folder for the plots of the routing and for inspection.json, which `mhr report` reads
    say            gets one line as each part begins

    Raises ConfigError for arguments that would change nothing, and MhrError as the three functions do.
    """
    compares = alignment or transfer
    for name, value, needed, there in (
        ("tasks", tasks, "alignment or transfer", compares),
        ("task", names, "alignment or transfer", compares),
        ("on_bad_row", on_bad_row, "alignment or transfer", compares),
        ("base", base, "alignment or transfer", compares),
        ("loading", loading, "alignment or transfer", compares),
        ("examples", examples, "alignment", alignment),
        ("limit", limit, "transfer", transfer),
    ):
        if value is not None and not there:
            raise ConfigError(f"{name} says something with {needed} only: add that, or leave {name} out")
    InspectConfig(alignment, examples, transfer, limit)
    inspection = inspect_run(run)
    if output is not None:
        prepare_output(output, overwrite)
    alignments: list[Alignment] = []
    matrix: Matrix = {}
    if compares:
        chosen = None if names is None else list(names)
        collection = tasks_to_judge(
            run, tasks=tasks, names=chosen, part=None if chosen else "training", on_bad_row=on_bad_row
        )
        how: dict[str, Any] = {"base": base, "loading": loading}
        if alignment:
            alignments = align_run(run, collection, examples=examples or 16, say=say, **how)
        if transfer:
            matrix = transfer_matrix(run, collection, limit=limit or 20, say=say, **how)
    result = RunInspection(inspection, alignments, matrix)
    if output is None:
        return result
    folder = make_folder(output)
    write_json_atomically(folder / INSPECTION_FILE, result.to_json())  # first, as it marks the folder as an output
    return RunInspection(inspection, alignments, matrix, save_plots(inspection, folder))
