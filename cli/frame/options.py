"""Options that several commands share: the same name, the same meaning, the same help everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mhr.runs.config import presets

SETTINGS = "Settings"
WHERE = "Input and output"

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `mhr pretrain` wrote.", show_default=False)]


def _output(what: str) -> Any:
    """The option that names the folder to write."""
    return typer.Option("--output", "-o", metavar="DIR", help=what, rich_help_panel=WHERE, show_default=False)


Output = Annotated[Path, _output("Folder to write. Each adapter, model or file in it appears whole or not at all.")]
ResumableOutput = Annotated[
    Path, _output("Folder to write. What is done stays when the command ends early, and --resume goes on from there.")
]
OptionalOutput = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder to write files to.", rich_help_panel=WHERE),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what an earlier run left in the output folder.", rich_help_panel=WHERE),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Resume an earlier run in the output folder. What is finished is not done again.",
        rich_help_panel=WHERE,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON alone on stdout.", rich_help_panel=WHERE),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file of settings, such as a run's config.yaml. Later wins: preset, file, --set, flags.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help=f"Recipe to start from: {', '.join(presets())}.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
