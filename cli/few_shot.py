"""The few-shot protocol on the command line: options that `mhr adapt` and `mhr sweep` share, and how they are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any

import typer

from mhr.errors import ConfigError

from .options import SETTINGS

PROTOCOL = "Protocol"

OPTIONS: dict[str, Any] = {
    "shots": Annotated[
        str | None,
        typer.Option(
            metavar="N[,TASK=N...]",
            help="Examples of the task to learn from; the seed draws them (default 32). Some tasks, by name or pattern, can have "
            "another number: 32,winogrande=50.",
            rich_help_panel=SETTINGS,
        ),
    ],
    "seeds": Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="One adaptation per seed, for a mean with its spread (default 13,42,58).",
            rich_help_panel=SETTINGS,
        ),
    ],
    "steps": Annotated[
        int | None,
        typer.Option(help="Updates of the weights. Unset: as the run's settings say.", rich_help_panel=SETTINGS),
    ],
    "batch_size": Annotated[
        int | None,
        typer.Option(help="Examples per update. Unset: as the run's settings say.", rich_help_panel=SETTINGS),
    ],
    "lr": Annotated[float | None, typer.Option(help="Learning rate of the adapters.", rich_help_panel=SETTINGS)],
    "router_lr": Annotated[
        float | None, typer.Option(help="Learning rate of the routing row.", rich_help_panel=SETTINGS)
    ],
    "warmup": Annotated[
        float | None,
        typer.Option(
            help="Steps over which the learning rate rises: below 1 a share of them, otherwise their number.",
            rich_help_panel=SETTINGS,
        ),
    ],
    "scheduler": Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Learning rate after the warm-up: linear, cosine or constant.",
            rich_help_panel=SETTINGS,
        ),
    ],
    "mc_loss": Annotated[
        float | None,
        typer.Option(
            help="Weight of ranking the right choice first (T-Few), for models that generate (default 0).",
            rich_help_panel=SETTINGS,
        ),
    ],
    "unlikely_loss": Annotated[
        float | None,
        typer.Option(
            help="Weight of making the tokens of wrong choices unlikely (T-Few; default 0).", rich_help_panel=SETTINGS
        ),
    ],
    "length_norm": Annotated[
        float | None,
        typer.Option(
            help="Power of a choice's length that its log-likelihood is divided by (default 1).",
            rich_help_panel=SETTINGS,
        ),
    ],
    "grid": Annotated[
        list[str] | None,
        typer.Option(
            metavar="KNOB=V,V ...",
            help="Values to choose from, all combinations: --grid lr=1e-3,1e-4 router_lr=0.5,0.1. Knobs: lr, router_lr, steps, "
            "batch_size, warmup, length_norm, mc_loss, unlikely_loss. 'none' leaves out the grid of the run's settings.",
            rich_help_panel=PROTOCOL,
            show_default=False,
        ),
    ],
    "protocol": Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What a grid or the best step is chosen on: held-out (a quarter of the shots, or a dev set; the default), or paper "
            "(the test examples themselves, as published for T0).",
            rich_help_panel=PROTOCOL,
        ),
    ],
    "select": Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Step that counts: last, or best. Unset: best with --protocol paper, --eval-every or --patience, otherwise last.",
            rich_help_panel=PROTOCOL,
        ),
    ],
    "eval_every": Annotated[
        int | None,
        typer.Option(help="Steps between two looks for the best one. Unset: a tenth.", rich_help_panel=PROTOCOL),
    ],
    "patience": Annotated[
        int | None,
        typer.Option(help="Looks without a better score after which a training ends early.", rich_help_panel=PROTOCOL),
    ],
    "dev": Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Collection with tasks of the same names whose examples are chosen on, instead of a quarter of the shots.",
            rich_help_panel=PROTOCOL,
        ),
    ],
    "dev_shots": Annotated[
        int | None,
        typer.Option(
            help="Further examples, drawn after the shots, that are chosen on, instead of a quarter of the shots.",
            rich_help_panel=PROTOCOL,
        ),
    ],
}
"""Name of a parameter -> its option, unset unless it is given."""


def few_shot_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command OPTIONS behind its own options. It gets them as `few`: settings of `mhr.few_shot.adapt`."""

    @wraps(command)
    def with_options(**values: Any) -> None:
        given = {name: values.pop(name) for name in OPTIONS}
        command(**values, few=few_shot_flags(**given))

    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "few"]
    more = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=of) for name, of in OPTIONS.items()]
    # What typer reads of a command.
    vars(with_options)["__signature__"] = signature.replace(parameters=[*own, *more])
    with_options.__annotations__ = {p.name: p.annotation for p in [*own, *more]}
    return with_options


def few_shot_flags(shots: str | None, seeds: str | None, grid: list[str] | None, **others: Any) -> dict[str, Any]:
    """The flags as settings of `mhr.few_shot.adapt`, without those that were not given."""
    number, by_task = _shots(shots)
    settings = {"shots": number, "shots_for": by_task, "seeds": _seeds(seeds), "grid": _grid(grid), **others}
    return {name: value for name, value in settings.items() if value is not None}


def _shots(text: str | None) -> tuple[int | None, dict[str, int] | None]:
    number: int | None = None
    by_task: dict[str, int] = {}
    for part in (text or "").split(",") if text is not None else ():
        task, equals, value = part.rpartition("=")
        try:
            shots = int(value)
        except ValueError:
            raise ConfigError(
                f"--shots: {part!r} is no whole number: expected, for example, 32 or 32,boolq=50"
            ) from None
        if equals:
            by_task[task.strip()] = shots
        elif number is None:
            number = shots
        else:
            raise ConfigError(
                f"--shots: {text!r} has two numbers for all tasks: name the tasks of others, as in 32,boolq=50"
            )
    return number, by_task or None


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds: {text!r} is no list of whole numbers: expected, for example, 13,42,58") from None


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
            raise ConfigError(f"--grid: {text!r} has no '=': expected a knob and its values, as in lr=1e-3,1e-4")
        if name in grid:
            raise ConfigError(f"--grid: {name} is given twice")
        try:
            grid[name] = [float(value) for value in values.split(",")]
        except ValueError:
            raise ConfigError(
                f"--grid: {values!r} is no list of numbers: expected, for example, {name}=1e-3,1e-4"
            ) from None
    return grid
