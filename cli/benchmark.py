"""`mhr benchmark`: time ours against its peers on this machine."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from rich.table import Table

from mhr.errors import ConfigError, nearest

from .frame import options
from .frame.console import note, out, print_json, working
from .frame.settings import takes

EXAMPLES = """**Examples**

mhr benchmark ops --quick

OMP_NUM_THREADS=1 mhr benchmark train --output benchmarks/results
"""

BENCHMARKS = {
    "ops": "one adapted layer, forward and training, against PEFT's Poly and LoRA, eager and the frozen layer",
    "train": "a whole training step against PEFT",
    "merge": "averaging checkpoints, with GB/s",
    "predict": "answers of a decoder to a batch of mixed tasks, against one task and the bare model",
}

Name = Annotated[str, typer.Argument(metavar="|".join(BENCHMARKS), help="What to time.", show_default=False)]
Quick = Annotated[
    bool, typer.Option("--quick", help="A few shapes and repetitions: under two minutes, less precise times.")
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0.0, metavar="X", help="ops only: measure a random part of the grid in this time. All of it takes hours."
    ),
]


@takes()
def benchmark(
    name: Name,
    quick: Quick = False,
    minutes: Minutes = None,
    output: options.OptionalOutput = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Time ours against PEFT, eager and the frozen layer: interleaved in one process, medians of paired differences.

    No speed-up is shown for outputs that do not agree. With --output, DIR/NAME.json keeps everything with the machine and
    commit it was measured on, DIR/NAME.md has the tables, and its plots are beside them as PNG and SVG.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}: {nearest(name, BENCHMARKS)}")
    if minutes and name != "ops":
        raise ConfigError(f"--minutes is for ops, whose grid is long: leave it out of {name}")
    file = output / f"{name}.json" if output else None
    if file and file.exists() and not overwrite:
        raise ConfigError(f"{file} is there already: choose another --output, or pass --overwrite to replace it")
    with working(models=name == "predict"):
        module = importlib.import_module(f"mhr_benchmarks.{name}")
        command = " ".join(
            ["mhr benchmark", name, *["--quick"] * quick, *([f"--minutes {minutes:g}"] if minutes else [])]
        )
        result = {"command": command, **module.run(quick=quick, **({"minutes": minutes} if minutes else {}))}
        written = []
        if output:
            from mhr_benchmarks.pages import save

            written = save(result, output, module.plots(result) if hasattr(module, "plots") else {})
    if json:
        print_json(result)
    else:
        out.print("  ".join(f"{key}: {value}" for key, value in result["machine"].items()), soft_wrap=True)
        for table in result["tables"]:
            _print(table)
    for path in written:
        note(f"Written: {path}")


def _print(content: dict[str, Any]) -> None:
    from mhr_benchmarks.pages import cell

    table = Table(title=content["title"], title_justify="left", title_style="bold")
    for index, column in enumerate(content["columns"]):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in content["rows"]:
        table.add_row(*map(cell, row))
    out.print()
    out.print(table)
    if content.get("note"):
        out.print(content["note"], markup=False)
