"""`mhr sweep`: runs x modes x tasks x seeds, each with its grid, in one resumable command and one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from mhr.runs.notes import shots_in_words
from mhr.sweeps.settings import SweepConfig

from .frame import few_shot, options
from .frame.console import note, out, print_json, print_table, working
from .frame.settings import Given, loading_of, takes

if TYPE_CHECKING:
    from mhr.sweeps import SweepResult

EXAMPLES = """**Examples**

mhr sweep runs/mhr runs/lora --modes mhr,z,mu,lora --seeds 13,42,58 --output runs/sweep

mhr sweep runs/superni --modes mu --grid lr=1e-3,1e-4 --workers 4 --output runs/superni-sweep --resume

mhr sweep runs/t0 --modes mhr,z --launcher ray --output /shared/t0-sweep
"""

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Folders that `mhr pretrain` wrote.", show_default=False)
]


@takes(
    *few_shot.SETTINGS,
    "sweep",
    "scoring.limit",
    sets=("adapt", *few_shot.OF_RUN),
    of_run=("adapt", *few_shot.OF_RUN),
    common=(
        *("--output", "--task", "--tasks", "--modes", "--shots", "--seeds", "--steps", "--lr", "--router-lr", "--grid", "--limit"),
        *("--workers", "--resume", "--overwrite"),
    ),
)  # fmt: skip
def sweep(
    runs: Runs,
    output: options.ResumableOutput,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
    shots: few_shot.Shots = None,
    grid: few_shot.Grid = None,
    *,
    given: Given,
) -> None:
    """Adapt runs in several modes to many tasks with several seeds, evaluate each result, and keep one table.

    DIR/results.jsonl gets a row as each adaptation ends, DIR/results.parquet holds them all at the end. After a kill,
    --resume goes on with what is not done.
    """
    few = few_shot.few_shot_settings(shots, grid, given)
    with working():
        from mhr.sweeps import sweep as work

        result = work(
            [str(run) for run in runs],
            given.values("scope").get("names"),
            output=str(output),
            tasks_path=given.values("").get("tasks"),
            **given.values("data"),
            **loading_of(given),
            **given.values("scoring"),
            **vars(SweepConfig(**given.values("sweep"))),
            overwrite=overwrite,
            resume=resume,
            **few,
        )
    for line in result.notes:
        note(line)
    if json:
        print_json({"rows": result.rows, "summary": result.summary()})
    else:
        _print(result)
    note(f"Written: {result.path / 'results.jsonl'} and {result.path / 'results.parquet'}")


def title_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What stands over the table of these rows."""
    protocols = " and ".join(dict.fromkeys(row["protocol"] for row in rows))
    shots = shots_in_words(row["shots"] for row in rows)
    return f"Score in percent after {shots}, mean and standard deviation over seeds (protocol {protocols})"


def _print(result: SweepResult) -> None:
    summary = result.summary()
    columns = list(dict.fromkeys((row["run"], row["mode"]) for row in summary))
    cells = {(row["run"], row["mode"], row["task"]): row for row in summary}
    out.print(title_of(result.rows), style="bold", soft_wrap=True)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    for run, mode in columns:
        table.add_column(f"{run}\n{mode}", justify="right", no_wrap=True)
    for task in dict.fromkeys(row["task"] for row in summary if row["task"] is not None):
        table.add_row(task, *(_cell(cells.get((*column, task))) for column in columns))
    table.add_section()
    table.add_row("mean", *(_cell(cells.get((*column, None))) for column in columns), style="bold")
    print_table(table)


def _cell(row: dict[str, float] | None) -> str:
    if row is None:
        return ""
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
    return f"{100 * row['mean']:.1f}{spread}"
