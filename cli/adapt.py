"""`mhr adapt`: teach a pretrained run new tasks from a few examples each."""

from __future__ import annotations

from typing import Annotated

import typer

from mhr.errors import ConfigError

from . import options
from .console import note, print_json, working
from .options import SETTINGS

EXAMPLES = """**Examples**

mhr adapt runs/mhr --task rev-last-upper --mode z --output runs/mhr-z

mhr adapt runs/superni --task task1206,task1212 --mode mu --shots 32 --seeds 13,42,58 --output runs/superni-mu
"""

Mode = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What is trained: mhr (the bank and a new routing row), z (the routing row alone), mu (the bank's average, one "
        "plain LoRA), lora (the shared adapter of a lora run), full (all weights of the backbone), random (a fresh bank).",
        rich_help_panel=SETTINGS,
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        help="Examples of the task to learn from; the seed draws them (default 32).", rich_help_panel=SETTINGS
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        help="One adaptation per seed, for a mean with its spread (default 13,42,58).",
        rich_help_panel=SETTINGS,
    ),
]
Steps = Annotated[
    int | None, typer.Option(help="Updates of the weights. Unset: as the run's settings say.", rich_help_panel=SETTINGS)
]
Lr = Annotated[float | None, typer.Option(help="Learning rate of the adapters.", rich_help_panel=SETTINGS)]
RouterLr = Annotated[float | None, typer.Option(help="Learning rate of the routing row.", rich_help_panel=SETTINGS)]


def adapt(
    run: options.Run,
    output: options.Output,
    task: options.TaskNames = None,
    tasks: options.Tasks = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
    mode: Mode = "mhr",
    shots: Shots = None,
    seeds: Seeds = None,
    steps: Steps = None,
    lr: Lr = None,
    router_lr: RouterLr = None,
) -> None:
    """Adapt a pretrained run to new tasks, from a few examples of each.

    Writes one adapted checkpoint per task and seed, at DIR/TASK/SEED. Without --task: every held-out task of the
    collection the run was trained on, or of --tasks.
    """
    with working():
        from mhr.training import adapt as train

        settings = {
            "shots": shots,
            "seeds": _whole_numbers(seeds),
            "steps": steps,
            "lr": lr,
            "router_lr": router_lr,
        }
        runs = train(
            str(run),
            options.split(task),
            mode=mode,
            output=str(output),
            tasks_path=tasks,
            overwrite=overwrite,
            resume=resume,
            **{name: value for name, value in settings.items() if value is not None},
        )
    if json:
        print_json([str(folder.path) for folder in runs])
    note(f"Adapted: {len(runs)} checkpoints in {output}")
    note(f"Next: mhr evaluate {runs[0].path}")


def _whole_numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds: {text!r} is no list of whole numbers: expected, for example, 13,42,58") from None
