"""What `mhr inspect` prints: parameters, routing as a heat map, how sharply layers choose, and which tasks are alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from rich.box import SIMPLE
from rich.color import Color
from rich.style import Style
from rich.table import Table
from rich.text import Text

from mhr.methods import BY_TOKEN

if TYPE_CHECKING:
    from mhr.analysis.alignment import Alignment
    from mhr.analysis.inspection import Inspection
    from mhr.report.inspecting import RunInspection

Row = TypeVar("Row")

MOST_ROWS = 100
BELOW, NEUTRAL, ABOVE = (33, 102, 172), (247, 247, 247), (178, 24, 43)


def blocks(result: RunInspection) -> Iterator[Text | Table]:
    """What is printed of an inspection, one block after the other."""
    inspection = result.inspection
    yield from _of_bank(inspection)
    if result.alignments:
        yield _heading("Gradient alignment: mean cosine between the gradients of pairs of tasks")
        yield _alignment(result.alignments)
    if result.transfer:
        yield _heading("Transfer: score in per cent, routed as (rows), evaluated on (columns)")
        yield _transfer(result.transfer)


def _of_bank(inspection: Inspection) -> Iterator[Text | Table]:
    routing = inspection.routing
    shape = f", {routing.n_heads} heads, {routing.n_skills} skills" if routing.weights else ""
    sizes = f", rank {inspection.rank}{shape}" if inspection.adapter else ""
    yield _heading(f"{inspection.path}: {inspection.method} {inspection.adapter}{sizes}")
    yield Text(f"{inspection.n_layers} layers of {inspection.base}, {len(inspection.tasks)} tasks")
    yield _parameters(inspection)
    if not inspection.routed:
        yield Text(
            "Each token is routed by itself: there are no weights of tasks to show."
            if inspection.method in BY_TOKEN
            else "All tasks are routed alike: there is no routing to show."
        )
        return
    yield _heading(f"Routing weights, mean over layers and heads; white is {'1/S' if routing.convex else '0'}")
    yield _heat_map(inspection)
    yield _heading("By layer: entropy (1 is uniform, 0 one skill), effective skills, discreteness")
    yield _sharpness(inspection)
    yield _heading("Which tasks route alike (cosine of their routing, from the uniform one)")
    yield _alike(inspection)
    if inspection.agreement is not None:
        yield Text(
            f"Agreement with the skills that tasks truly share: rank correlation {inspection.agreement.correlation:.2f}, "
            f"p = {inspection.agreement.p:.2g} over {inspection.agreement.pairs} pairs"
        )


def _heading(text: str) -> Text:
    return Text(text, style="bold")


def _parameters(inspection: Inspection) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("parameters")
    table.add_column("trained", justify="right")
    table.add_column("stored", justify="right")
    for kind, count in inspection.parameters.items():
        table.add_row(kind, f"{count['trained']:,}", f"{count['stored']:,}")
    if len(inspection.parameters) > 1:
        table.add_row("all", f"{inspection.trained:,}", f"{inspection.stored:,}", style="bold")
    if inspection.per_task:
        table.add_row("routing of one more task", f"{inspection.per_task:,}", "")
    if inspection.per_skill:
        table.add_row("skill of one more task", f"{inspection.per_skill:,}", "")
    return table


def _heat_map(inspection: Inspection) -> Table:
    table = Table(box=None, padding=0)
    table.add_column("task ", overflow="fold")
    n_skills = inspection.routing.n_skills
    for skill in range(n_skills):
        table.add_column(f"{skill:^6}", width=6, no_wrap=True)
    rows = inspection.routing.by_skill.tolist()
    even = inspection.routing.even
    reach = max(max(abs(w - even) for row in rows for w in row), 1e-3)
    for task, row in _first(zip(inspection.tasks, rows, strict=True)):
        table.add_row(f"{task} ", *(_cell(weight, (weight - even) / reach) for weight in row))
    return table


def _cell(weight: float, position: float) -> Text:
    """A weight on its colour; position runs from -1 over 0, white, to 1."""
    end = ABOVE if position > 0 else BELOW
    mixed = [round(n + abs(position) * (e - n)) for n, e in zip(NEUTRAL, end, strict=True)]
    ink = "white" if abs(position) > 0.6 else "black"
    return Text(f" {weight:.2f} ", Style(color=ink, bgcolor=Color.from_rgb(*mixed).name))


def _sharpness(inspection: Inspection) -> Table:
    routing = inspection.routing
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
    table.add_row("all layers, mixed factors", *(_cosine(one.mixed) for one in aligned), style="bold")
    table.add_row("mean loss of the tasks", *(_cosine(one.loss) for one in aligned))
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
    for row, scores in _first(matrix.items()):
        table.add_row(row, *(f"{100 * scores[column]:.0f}" if column in scores else "" for column in columns))
    return table


def _alike(inspection: Inspection) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("task", overflow="fold")
    table.add_column("most alike", overflow="fold")
    for task, others in _first(inspection.routing.most_alike(3).items()):
        table.add_row(task, ", ".join(f"{other} {cosine:.2f}" for other, cosine in others))
    return table


def _first(rows: Iterable[Row]) -> Iterator[Row]:
    """As many rows as one wants to read; --json has them all."""
    return islice(rows, MOST_ROWS)
