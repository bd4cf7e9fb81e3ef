"""`mhr data`: look at a task collection before training on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from .frame import options
from .frame.command import command_class
from .frame.console import out, print_error, print_json, working
from .frame.settings import READING, Given, takes

if TYPE_CHECKING:
    from mhr.data.check import CheckReport

EXAMPLES = """**Examples**

mhr data check natural-instructions

mhr data check natural-instructions --split-list xlingual

mhr data check questions.jsonl --columns input=question,targets=answer --json
"""

SHOWN = 12
"""Files whose format, columns and split are listed."""

app = typer.Typer(name="data", no_args_is_help=True, help="Check and summarise a task collection.")

Collection = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A file or folder of rows (JSON, JSONL, CSV, TSV, Parquet), a Super-NaturalInstructions or CrossFit folder, a "
        "Hugging Face dataset, or builtin:skills.",
        show_default=False,
    ),
]


@takes(
    *(name for name in READING if name != "data.template"), common=("--json", "--columns", "--split-list", "--subset")
)
def check(
    path: Collection,
    json: options.Json = False,
    *,
    given: Given,
) -> None:
    """Read a whole collection; say what each file was taken for, list every error with its file and line, then sizes, lengths
    and labels of its tasks.

    Exit code 2 where there is a fault.
    """
    with working(models=False):
        from mhr.data.check import check_collection
        from mhr.runs import RunConfig
        from mhr.runs.unused import refuse_unused

        refuse_unused(given.named(), RunConfig(tasks=path))
        found = check_collection(path, **given.values("data"))
    if json:
        print_json(found.to_dict())
    else:
        _print(found)
    for fault in found.faults:
        print_error(str(fault))
    if not found.ok:
        raise typer.Exit(2)


app.command(epilog=EXAMPLES, cls=command_class(vars(check)["common"]))(check)


def _print(found: CheckReport) -> None:
    out.print(f"{found.path} ({found.reader})", style="bold", markup=False, soft_wrap=True)
    for line in found.recognised[:SHOWN]:
        out.print(line, markup=False, soft_wrap=True)
    if len(found.recognised) > SHOWN:
        out.print(f"and {len(found.recognised) - SHOWN} more files (all with --json)")
    table = Table(box=SIMPLE)
    table.add_column("task", overflow="fold")
    for title, width in (("train", 5), ("test", 5), ("input chars", 12), ("labels", 6)):
        table.add_column(title, justify="right", width=width)
    table.add_column("remarks")
    for task in found.tasks:
        remarks = {
            "held out": task.held_out,
            f"{task.duplicates_train + task.duplicates_test} repeated": task.duplicates_train + task.duplicates_test,
            f"{task.duplicates_between} in both splits": task.duplicates_between,
        }
        table.add_row(
            task.name,
            str(task.train),
            str(task.test),
            f"{task.input_chars.median:.0f} to {task.input_chars.max}",
            str(len(task.labels) or ""),
            ", ".join(remark for remark, there in remarks.items() if there),
        )
    out.print(table)
    for line in found.notes:
        out.print(line, markup=False, soft_wrap=True)
    totals = found.totals
    out.print(
        f"{totals['tasks']} tasks ({totals['training_tasks']} to train on, {totals['held_out_tasks']} held out), "
        f"{totals['train_examples']} training and {totals['test_examples']} evaluation examples, {totals['faults']} errors",
        soft_wrap=True,
    )
