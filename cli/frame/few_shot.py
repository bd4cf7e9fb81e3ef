"""The few-shot protocol on the command line: the options that `mhr adapt` and `mhr sweep` share, beside those of settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mhr.errors import ConfigError
from mhr.runs.adapt_settings import TUNABLE

from .settings import LOADING, PANELS, Given

OF_RUN = ("tasks", "data.template", "data.prompt", "data.verbalizers", "data.on_bad_row")
"""Settings of a run that both commands may change."""

SETTINGS = (*OF_RUN, "scope.names", *LOADING, "adapt")
"""Settings that both commands use."""

Shots = Annotated[
    str | None,
    typer.Option(
        metavar="N[,TASK=N...]",
        help="Examples of the task to learn from, drawn by the seed. Some tasks, by name or pattern, can have another number: "
        "32,winogrande=50. (default: the run's, or 32)",
        rich_help_panel=PANELS["adapt"],
        show_default=False,
    ),
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=V,V ...",
        help="Values to search, all combinations: --grid lr=1e-3,1e-4 router_lr=0.5,0.1. "
        f"Hyperparameters: {', '.join(TUNABLE)}. 'none' "
        "leaves out the grid of the run's settings.",
        rich_help_panel=PANELS["adapt"],
        show_default=False,
    ),
]


def few_shot_settings(shots: str | None, grid: list[str] | None, given: Given) -> dict[str, Any]:
    """The settings given for an adaptation, as arguments of `mhr.few_shot.adapt` and `sweep`. Raises ConfigError."""
    number, by_task = _shots(shots)
    said = {"shots": number, "shots_for": by_task, "grid": _grid(grid)}
    return given.values("adapt") | {name: value for name, value in said.items() if value is not None}


def _shots(text: str | None) -> tuple[int | None, dict[str, int] | None]:
    number: int | None = None
    by_task: dict[str, int] = {}
    for part in (text or "").split(",") if text is not None else ():
        task, equals, value = part.rpartition("=")
        try:
            shots = int(value)
        except ValueError:
            raise ConfigError(f"--shots: {part!r} is no integer: expected, for example, 32 or 32,boolq=50") from None
        if equals:
            by_task[task.strip()] = shots
        elif number is None:
            number = shots
        else:
            raise ConfigError(
                f"--shots: {text!r} has two values for all tasks: name the tasks of others, as in 32,boolq=50"
            )
    return number, by_task or None


def _grid(texts: list[str] | None) -> dict[str, list[float]] | None:
    """["lr=1e-3,1e-4", "router_lr=0.5"] -> {"lr": [0.001, 0.0001], "router_lr": [0.5]}; ["none"] -> {}."""
    if texts is None or not texts:
        return None
    if texts == ["none"]:
        return {}
    grid: dict[str, list[float]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ConfigError(
                f"--grid: {text!r} has no '=': expected a hyperparameter and its values, as in lr=1e-3,1e-4"
            )
        if name in grid:
            raise ConfigError(f"--grid: {name} is given twice")
        try:
            grid[name] = [float(value) for value in values.split(",")]
        except ValueError:
            raise ConfigError(
                f"--grid: {values!r} is no list of numbers: expected, for example, {name}=1e-3,1e-4"
            ) from None
    return grid
