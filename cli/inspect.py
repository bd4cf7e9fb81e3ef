"""`mhr inspect`: what a run learnt about its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from rich.box import SIMPLE
from rich.color import Color
from rich.style import Style
from rich.table import Table
from rich.text import Text

from . import options
from .console import note, out, print_json, working

if TYPE_CHECKING:
    from mhr.report.inspect import Inspection

EXAMPLES = """**Examples**

mhr inspect runs/mhr

mhr inspect runs/mhr --output runs/plots
"""

Row = TypeVar("Row")

MOST_ROWS = 100
BELOW, NEUTRAL, ABOVE = (33, 102, 172), (247, 247, 247), (178, 24, 43)


def inspect(
    run: options.Run,
    output: options.OptionalOutput = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Show a run's parameters, its routing as a heat map, entropy per layer, and which tasks route alike.

    With --output, DIR holds the heat maps and curves as PNG and SVG, and inspection.json.
    """
    with working():
        from mhr.files import make_folder, prepare_output, write_json_atomically
        from mhr.report.inspect import inspect_run

        found = inspect_run(run)
        if output:
            from mhr.report.plots import save_plots

            prepare_output(output, overwrite)
            make_folder(output)
            plots = save_plots(found, output)
            write_json_atomically(output / "inspection.json", found.to_json())
    if json:
        print_json(found.to_json())
    else:
        _print(found)
    if output:
        note(f"Written: {len(plots)} plots and inspection.json in {output}")


def _print(found: Inspection) -> None:
    shape = f", rank {found.rank}, {found.n_heads} heads, {found.n_skills} skills" if found.adapter else ""
    out.print(f"{found.path}: {found.method} {found.adapter}{shape}", style="bold", markup=False, soft_wrap=True)
    out.print(f"{found.n_layers} layers of {found.base}, {len(found.tasks)} tasks", markup=False, soft_wrap=True)
    out.print(_parameters(found))
    if not found.routed:
        out.print("All tasks are routed alike: there is no routing to show.")
        return
    out.print("Routing weights, mean over layers and heads; white is 1/S", style="bold")
    out.print(_heat_map(found))
    out.print("Entropy of the routing by layer: 1 uses every skill alike, 0 only one", style="bold")
    out.print(_entropy(found))
    out.print("Which tasks route alike (cosine of their routing, from the uniform one)", style="bold")
    out.print(_alike(found))


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
    for skill in range(found.n_skills):
        table.add_column(f"{skill:^6}", width=6, no_wrap=True)
    rows = found.by_skill.tolist()
    even = 1 / found.n_skills
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


def _entropy(found: Inspection) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("layer", overflow="fold")
    table.add_column("entropy", justify="right")
    table.add_column("")
    for layer, entropy in _first(found.entropy.items()):
        table.add_row(layer or "all layers", f"{entropy:.3f}", "█" * round(20 * entropy))
    return table


def _alike(found: Inspection) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("task", overflow="fold")
    table.add_column("most alike", overflow="fold")
    for task, others in _first(found.most_alike(3).items()):
        table.add_row(task, ", ".join(f"{other} {cosine:.2f}" for other, cosine in others))
    return table


def _first(rows: Iterable[Row]) -> Iterator[Row]:
    """As many rows as one wants to read; --json has them all."""
    return islice(rows, MOST_ROWS)
