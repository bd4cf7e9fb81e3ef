"""`mhr evaluate MODEL --harness TASK ...`: the tasks of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from mhr.errors import ConfigError

from .frame.console import out

PANEL = "lm-evaluation-harness"

Harness = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK...",
        help="Tasks of the lm-evaluation-harness (pip install 'mhr[harness]') instead of a collection: --harness boolq rte. The "
        "adapter is folded into the weights: an adapted run's own routing, --route-as, or the average.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
HarnessTasks = Annotated[
    Path | None,
    typer.Option(
        "--harness-tasks",
        metavar="DIR",
        help="Folder of further task files (YAML) for --harness.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]


def refuse(flags: dict[str, bool]) -> None:
    """Raise ConfigError for a flag that is given (name -> whether it is) and speaks of the tasks of a collection."""
    for name, given in flags.items():
        if given:
            raise ConfigError(f"{name} is for task collections, and --harness has tasks of its own: leave one out")


def print_results(name: str, found: dict[str, Any]) -> None:
    """A row for every metric of every task."""
    out.print(f"{name} in the lm-evaluation-harness", style="bold", markup=False, soft_wrap=True)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    for column in ("metric", "value", "stderr"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for task, measures in found["results"].items():
        for key, value in measures.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, float):
                continue
            error = measures.get(f"{metric}_stderr,{kind}")
            spread = f"{error:.4f}" if isinstance(error, float) else ""
            table.add_row(task, metric if kind == "none" else f"{metric} ({kind})", f"{value:.4f}", spread)
    out.print(table)
