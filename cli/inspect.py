"""`mhr inspect`: what a run learnt about its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.box import SIMPLE
from rich.color import Color
from rich.style import Style
from rich.table import Table
from rich.text import Text

from mhr.errors import ConfigError
from mhr.locks import locked

from .frame import options
from .frame.console import note, out, print_json, working
from .frame.options import SETTINGS
from .frame.settings import takes

if TYPE_CHECKING:
    from mhr.analysis.alignment import Alignment
    from mhr.analysis.inspection import Inspection
    from mhr.analysis.transfer import Matrix

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
        help="Evaluate every task routed as every other: what one taught, used for another.",
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

Row = TypeVar("Row")

MOST_ROWS = 100
BELOW, NEUTRAL, ABOVE = (33, 102, 172), (247, 247, 247), (178, 24, 43)


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

    --alignment and --transfer look at its training tasks, or those of --task. With --output, DIR holds the heat maps and curves
    as PNG and SVG, and inspection.json, which `mhr report` reads where DIR lies in the run's folder.
    """
    looks = alignment or transfer
    for name, given, needed, there in (
        ("--tasks", tasks, "--alignment or --transfer", looks),
        ("--task", task, "--alignment or --transfer", looks),
        ("--examples", examples, "--alignment", alignment),
        ("--limit", limit, "--transfer", transfer),
    ):
        if given is not None and not there:
            raise ConfigError(f"{name} says something with {needed} only: add that, or leave {name} out")
    with working(), locked(output):
        from mhr.analysis.inspection import inspect_run
        from mhr.files import make_folder, prepare_output, write_json_atomically

        found = inspect_run(run)
        if output:
            prepare_output(output, overwrite)
        aligned: list[Alignment] = []
        matrix: Matrix = {}
        if looks:
            from mhr.analysis.alignment import align_run
            from mhr.analysis.transfer import transfer_matrix
            from mhr.evaluation.scope import tasks_to_judge

            names = options.split(task)
            collection = tasks_to_judge(run, tasks=tasks, names=names, part=None if names else "training")
            if alignment:
                aligned = align_run(run, collection, examples=16 if examples is None else examples, say=note)
            if transfer:
                matrix = transfer_matrix(run, collection, limit=20 if limit is None else limit, say=note)
        told = found.to_json() | {"alignment": [one.to_json() for one in aligned], "transfer": matrix}
        if output:
            from mhr.report.plots import save_plots

            make_folder(output)
            plots = save_plots(found, output)
            write_json_atomically(output / "inspection.json", told)
    if json:
        print_json(told)
    else:
        _print(found)
        if aligned:
            out.print("Gradient alignment: mean cosine between the gradients of pairs of tasks", style="bold")
            out.print(_alignment(aligned))
        if matrix:
            out.print("Transfer: score in per cent, routed as (rows), evaluated on (columns)", style="bold")
            out.print(_transfer(matrix))
    if output:
        note(f"Written: {len(plots)} plots and inspection.json in {output}")


def _print(found: Inspection) -> None:
    routing = found.routing
    shape = f", rank {found.rank}, {routing.n_heads} heads, {routing.n_skills} skills" if found.adapter else ""
    out.print(f"{found.path}: {found.method} {found.adapter}{shape}", style="bold", markup=False, soft_wrap=True)
    out.print(f"{found.n_layers} layers of {found.base}, {len(found.tasks)} tasks", markup=False, soft_wrap=True)
    out.print(_parameters(found))
    if not found.routed:
        out.print("All tasks are routed alike: there is no routing to show.")
        return
    out.print("Routing weights, mean over layers and heads; white is 1/S", style="bold")
    out.print(_heat_map(found))
    out.print("By layer: entropy (1 uses every skill alike, 0 only one), skills in effect, discreteness", style="bold")
    out.print(_sharpness(found))
    out.print("Which tasks route alike (cosine of their routing, from the uniform one)", style="bold")
    out.print(_alike(found))
    if found.agreement is not None:
        out.print(
            f"Agreement with the skills that tasks truly share: rank correlation {found.agreement.correlation:.2f}, "
            f"p = {found.agreement.p:.2g} over {found.agreement.pairs} pairs",
            soft_wrap=True,
        )


def _parameters(found: Inspection) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("parameters")
    table.add_column("trained", justify="right")
    table.add_column("stored", justify="right")
    for kind, count in found.parameters.items():
        table.add_row(kind, f"{count['trained']:,}", f"{count['stored']:,}")
    if len(found.parameters) > 1:
        table.add_row("all", f"{found.trained:,}", f"{found.stored:,}", style="bold")
    if found.per_task:
        table.add_row("routing of one more task", f"{found.per_task:,}", "")
    return table


def _heat_map(found: Inspection) -> Table:
    table = Table(box=None, padding=0)
    table.add_column("task ", overflow="fold")
    n_skills = found.routing.n_skills
    for skill in range(n_skills):
        table.add_column(f"{skill:^6}", width=6, no_wrap=True)
    rows = found.routing.by_skill.tolist()
    even = 1 / n_skills
    reach = max(max(abs(w - even) for row in rows for w in row), 1e-3)
    for task, row in _first(zip(found.tasks, rows, strict=True)):
        table.add_row(f"{task} ", *(_cell(weight, (weight - even) / reach) for weight in row))
    return table


def _cell(weight: float, position: float) -> Text:
    """A weight on its colour; position runs from -1 over 0, white, to 1."""
    end = ABOVE if position > 0 else BELOW
    mixed = [round(n + abs(position) * (e - n)) for n, e in zip(NEUTRAL, end, strict=True)]
    ink = "white" if abs(position) > 0.6 else "black"
    return Text(f" {weight:.2f} ", Style(color=ink, bgcolor=Color.from_rgb(*mixed).name))


def _sharpness(found: Inspection) -> Table:
    routing = found.routing
    effective, discrete = routing.effective_skills, routing.discreteness
    table = Table(box=None, padding=(0, 1))
    table.add_column("layer", overflow="fold")
    for title in ("entropy", "skills", "discrete"):
        table.add_column(title, justify="right")
    table.add_column("")
    for layer, entropy in _first(routing.entropy.items()):
        numbers = f"{entropy:.3f}", f"{effective[layer]:.2f}", f"{discrete[layer]:.3f}"
        table.add_row(layer or "all layers", *numbers, "█" * round(20 * entropy))
    return table


def _alignment(aligned: list[Alignment]) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("layer", overflow="fold")
    for one in aligned:
        table.add_column(f"step {one.step}", justify="right")
    table.add_row("all layers", *(_cosine(one.mean) for one in aligned), style="bold")
    for layer in _first(aligned[0].layers):
        table.add_row(layer, *(_cosine(one.layers[layer]) for one in aligned))
    return table


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _transfer(matrix: dict[str, dict[str, float]]) -> Table:
    columns = list(dict.fromkeys(task for row in matrix.values() for task in row))
    table = Table(box=None, padding=(0, 1))
    table.add_column("task", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for row, own in _first(matrix.items()):
        table.add_row(row, *(f"{100 * own[column]:.0f}" if column in own else "" for column in columns))
    return table


def _alike(found: Inspection) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("task", overflow="fold")
    table.add_column("most alike", overflow="fold")
    for task, others in _first(found.routing.most_alike(3).items()):
        table.add_row(task, ", ".join(f"{other} {cosine:.2f}" for other, cosine in others))
    return table


def _first(rows: Iterable[Row]) -> Iterator[Row]:
    """As many rows as one wants to read; --json has them all."""
    return islice(rows, MOST_ROWS)
