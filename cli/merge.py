"""`mhr merge`: make one plain adapter, or one plain model, of a routed run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhr.errors import ConfigError

from . import options
from .console import note, print_json, working
from .options import SETTINGS

EXAMPLES = """**Examples**

mhr merge runs/mhr --output runs/mhr-mu

mhr merge runs/mhr --method task --task rev-last-upper --to peft-lora --output lora

mhr merge runs/mhr --method weighted --weights rev-last=0.7,next-first=0.3 --to model --output model
"""

Source = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Run, adapted checkpoint or adapter folder to merge; a PEFT folder only changes its form.",
        show_default=False,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="uniform (the average of the skills, MHR-mu), task (the mixture of one task, exactly) or weighted (an average "
        "by --weights).",
        rich_help_panel=SETTINGS,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The task to merge for, with --method task.", rich_help_panel=SETTINGS),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=W,...",
        help="With --method weighted: weights of tasks, as in a=0.7,b=0.3, or of all skills in order, as in 1,0,0.5.",
        rich_help_panel=SETTINGS,
    ),
]
To = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        help="mhr (an adapter for this library), peft-lora (a folder that PEFT loads by itself) or model (folded into the "
        "base weights: a plain transformers model).",
        rich_help_panel=SETTINGS,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Store float32, bfloat16 or float16. Unset: as the adapter is.", rich_help_panel=SETTINGS
    ),
]


def merge(
    path: Source,
    output: options.Output,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    method: Method = "uniform",
    task: Task = None,
    weights: Weights = None,
    to: To = "mhr",
    dtype: Dtype = None,
    model: options.Base = None,
) -> None:
    """Merge a routed adapter into one plain LoRA, which costs nothing to route and nothing to serve.

    A task's mixture and the uniform average are exactly one LoRA of the same rank: nothing is lost.
    """
    with working():
        from mhr.merging import merge as make

        written = make(
            str(path),
            method=method,
            task=task,
            weights=_weights(weights),
            to=to,
            output=str(output),
            overwrite=overwrite,
            dtype=dtype,
            base=model,
        )
    if json:
        print_json({"output": str(written), "method": method, "to": to})
    note(f"Merged: {written}")


def _weights(text: str | None) -> dict[str, float] | list[float] | None:
    """ "a=0.7,b=0.3" -> weights of tasks; "1,0,0.5" -> weights of the skills."""
    if text is None:
        return None
    parts = [part.rpartition("=") for part in text.split(",")]
    try:
        if all(equals for _, equals, _ in parts):
            return {name.strip(): float(weight) for name, _, weight in parts}
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--weights: cannot read {text!r}: expected a weight per task, as in a=0.7,b=0.3, or per skill, as in 1,0,0.5"
        ) from None
