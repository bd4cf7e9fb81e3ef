"""`mhr inspect`: what a run learnt about its tasks."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from ._inspect_tables import blocks
from .frame import options
from .frame.console import note, out, print_json, working
from .frame.options import SETTINGS
from .frame.settings import takes

EXAMPLES = """**Examples**

mhr inspect runs/mhr

mhr inspect runs/mhr --output runs/plots

mhr inspect runs/mhr --alignment --examples 16 --output runs/mhr/inspection

mhr inspect runs/mhr --transfer --task rev-last,min-box,first-upper --limit 20
"""

WithAlignment = Annotated[
    bool,
    typer.Option(
        "--alignment",
        help="Compare the gradients of tasks with one another, at every checkpoint that the run kept.",
        rich_help_panel=SETTINGS,
    ),
]
Examples = Annotated[
    int | None,
    typer.Option(help="With --alignment: training examples of a task (default 16).", rich_help_panel=SETTINGS),
]
WithTransfer = Annotated[
    bool,
    typer.Option(
        "--transfer",
        help="Evaluate every task while it is routed as every other task.",
        rich_help_panel=SETTINGS,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="With --transfer: at most this many examples of each task, the first ones (default 20).",
        rich_help_panel=SETTINGS,
    ),
]


@takes(
    common=(
        *(
            "--tasks",
            "--task",
            "--output",
            "--overwrite",
            "--json",
            "--alignment",
            "--examples",
            "--transfer",
            "--limit",
        ),
    )
)
def inspect(
    run: options.Run,
    tasks: options.Tasks = None,
    task: options.TaskNames = None,
    output: options.OptionalOutput = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    alignment: WithAlignment = False,
    examples: Examples = None,
    transfer: WithTransfer = False,
    limit: Limit = None,
) -> None:
    """Show a run's parameters, its routing as a heat map, entropy per layer, and which tasks route alike.

    --alignment and --transfer use its training tasks, or those of --task. With --output, DIR holds the heat maps and curves
    as PNG and SVG, and inspection.json, which `mhr report` reads where DIR is in the run's folder.
    """
    with working():
        from mhr.report.inspecting import inspect_fully

        result = inspect_fully(
            run,
            tasks=tasks,
            names=options.split(task),
            alignment=alignment,
            examples=examples,
            transfer=transfer,
            limit=limit,
            output=output,
            overwrite=overwrite,
            say=note,
        )
    if json:
        print_json(result.to_json())
    else:
        for block in blocks(result):
            out.print(block, soft_wrap=isinstance(block, Text))
    if output:
        note(f"Written: {len(result.plots)} plots and inspection.json in {output}")
