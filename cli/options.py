"""Options that several commands share: the same name, the same meaning, the same help everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SETTINGS = "Settings"
WHERE = "Input and output"

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `mhr pretrain` wrote.", show_default=False)]

Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        metavar="PATH",
        help="Task collection: a Super-NaturalInstructions folder, a JSONL or Parquet file or folder, a Hugging Face "
        "dataset (hub id or saved folder), or builtin:skills.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="A task of the collection; repeat it, or separate names by commas, for more.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Folder to write; it appears whole or not at all.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
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
        help="Go on from the newest checkpoint in the output folder; what is finished is not done again.",
        rich_help_panel=WHERE,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON value on stdout and nothing else there.", rich_help_panel=WHERE),
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
        help="Published recipe to start from: t0, superni, crossfit, glue-adamix, glue-adamix-bert, e2e-adamix; or demo.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="Any setting by its name in the file, as in train.clip=0.1; repeat it for more.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Prompt templates: a YAML file of inputs and the words of labels, or a packaged one (glue). Unset: as the run's "
        "settings say.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Base model, where it is no longer at the place the checkpoint names.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]


def split(names: list[str] | None) -> list[str] | None:
    """["a,b", "c"] -> ["a", "b", "c"]; None stays None."""
    if not names:
        return None
    return [part.strip() for name in names for part in name.split(",") if part.strip()]
