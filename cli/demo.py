"""`mhr demo`: the whole job on the built-in backbone and tasks, in a few minutes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from .frame import options
from .frame.console import note, out, print_json, working
from .frame.options import SETTINGS
from .frame.settings import Given, takes

if TYPE_CHECKING:
    from mhr.demo import DemoResult

EXAMPLES = """**Examples**

mhr demo

mhr demo --output runs/demo --resume
"""

MaxTasks = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Adapt to the first N held-out tasks only. Unset: to all.", rich_help_panel=SETTINGS
    ),
]


@takes(sets=("adapter", "data", "train", "adapt"))
def demo(
    output: options.ResumableOutput = Path("runs/demo"),
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
    max_tasks: MaxTasks = None,
    *,
    given: Given,
) -> None:
    """Show the whole job: pretrain, adapt to tasks never seen, merge, evaluate. Minutes on two cores, nothing downloaded.

    Ends with a table of held-out tasks against ways to adapt, and the folder with everything that was written.
    """
    # The backbone is so small that threads wait for one another more than they work, above all on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with working():
        from mhr.demo import run_demo

        result = run_demo(
            output, overwrite=overwrite, resume=resume, overrides=given.overrides, max_tasks=max_tasks, say=note
        )
    if json:
        print_json(result.to_dict())
    else:
        _print(result)
    note(f"Written: {result.path}")


def _print(result: DemoResult) -> None:
    title = f"Tasks never trained on, after {result.shots} examples of each: accuracy or exact match in percent"
    out.print(title, style="bold", soft_wrap=True)
    table = Table(box=SIMPLE, padding=0)
    table.add_column("task", overflow="fold")
    for column in ("majority", *result.columns):
        table.add_column(column, justify="right", width=max(7, *map(len, column.split())))
    for task, scores in result.scores.items():
        cells = [result.majority[task], *(scores[column] for column in result.columns)]
        table.add_row(task, *(f"{100 * cell:.0f}" for cell in cells))
    table.add_section()
    table.add_row("mean", "", *(f"{100 * result.mean[column]:.1f}" for column in result.columns), style="bold")
    table.add_row("trained", "", *(f"{result.trained[column]:,}" for column in result.columns), style="dim")
    out.print(table)
