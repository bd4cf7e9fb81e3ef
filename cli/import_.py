"""`mhr import`: a run of what another program, or a loop of one's own, trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .frame import options
from .frame.console import note, out, print_json, working
from .frame.settings import LOADING, Given, loading_of, takes

EXAMPLES = """**Examples**

mhr import peft-poly --model google/flan-t5-base --task-names names.txt --output runs/theirs

mhr import finish.ckpt --output runs/mttl

mhr import my-loop/adapter --tasks questions.jsonl --output runs/mine
"""

Source = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="A PEFT Poly, LoRA or IA3 folder, a checkpoint of microsoft/mttl, an expert soup of microsoft/AdaMix, or an adapter folder "
        "of `mhr.adapters.save_adapter`.",
        show_default=False,
    ),
]


@takes(
    "import",
    *LOADING,
    "loading.kind",
    common=("--output", "--overwrite", "--json", "--model", "--kind", "--task-names", "--tasks"),
)
def import_(
    path: Source,
    output: options.Output,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    *,
    given: Given,
) -> None:
    """Make a run of a bank that others trained, so that every command takes it.

    The bank is taken exactly or refused by name, and nothing of PATH is executed. The base model is loaded to see that the bank fits.
    """
    with working():
        from mhr.adapters.importing import import_run

        run = import_run(path, output=output, overwrite=overwrite, **given.values("import"), **loading_of(given))
    info = run.info
    if json:
        print_json({"output": str(output), **info})
    else:
        tasks = info["tasks"]
        shown = ", ".join(tasks[:4]) + (f" and {len(tasks) - 4} more" if len(tasks) > 4 else "")
        out.print(f"{info['method']} on {info['base']}, {len(tasks)} tasks ({shown})", markup=False, soft_wrap=True)
    for line in info["notes"]:
        note(f"note: {line}")
    note(f"Imported: {output}")
