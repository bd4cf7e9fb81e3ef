"""`mhr data`: look at a task collection before training on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from mhr.data.faults import printable
from mhr.errors import DataError
from mhr.runs.config import WORDING

from .frame import options
from .frame.command import command_class
from .frame.console import out, print_error, print_json, working
from .frame.settings import READING, Given, loading_of, takes

if TYPE_CHECKING:
    from mhr.data.check import CheckReport
    from mhr.evaluation.shown import ShownRow

EXAMPLES = """**Examples**

mhr data check natural-instructions

mhr data check natural-instructions --split-list xlingual

mhr data check questions.jsonl --columns input=question,targets=answer --json
"""

SHOW_EXAMPLES = """**Examples**

mhr data show chats.jsonl --model my-decoder --row 3

mhr data show chats.jsonl --model runs/mhr --task sums --json

mhr data show questions.csv --model my-decoder --chat-template chatml --system "Be short."
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


@takes(*(name for name in READING if name not in WORDING), common=("--json", "--columns", "--split-list", "--subset"))
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


app.command(epilog=EXAMPLES, cls=command_class(check))(check)

CHAT = ("data.chat_template", "data.train_on", "data.system", "data.max_input_length", "data.max_target_length")
"""Settings that say what a row is to a decoder."""


@takes(
    *READING,
    *CHAT,
    "loading.trust_remote_code",
    sets=(*READING, *CHAT),
    common=("--model", "--row", "--task", "--split", "--chat-template", "--train-on", "--system", "--set", "--json"),
    of_run=CHAT,
)
def show(
    path: Collection,
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="Decoder, or run of one, that reads the row.", show_default=False
        ),
    ],
    row: Annotated[
        int,
        typer.Option("--row", metavar="N", min=1, help="Number of the row in its task, from 1.", show_default=False),
    ] = 1,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="NAME", help="Task of the row. Unset: the first.", show_default=False),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="train, or test.", show_default=False)
    ] = "train",
    json: options.Json = False,
    *,
    given: Given,
) -> None:
    """Print one row as a decoder is trained on it: its tokens, which of them are trained on, and where it was truncated.

    --model is a decoder or a run, whose chat template and lengths are taken where none are given.
    """
    with working():
        from mhr.data import load_tasks
        from mhr.data.chat_format import ChatFormat
        from mhr.evaluation import load_model
        from mhr.evaluation.shown import show_row
        from mhr.runs import RunConfig
        from mhr.runs.unused import refuse_unused

        refuse_unused({k: v for k, v in given.named().items() if k.startswith("data.")}, RunConfig(tasks=path))
        data = given.values("data")
        chat = {key.rpartition(".")[2]: data.pop(key.rpartition(".")[2], None) for key in CHAT}
        tasks = load_tasks(path, **data)
        chosen = tasks[task or next(iter(tasks))]
        examples = chosen.split(split)
        if row > len(examples):
            raise DataError(f"--row is {row}, but task {chosen.name!r} has {len(examples)} {split} rows")
        loaded = load_model(model, **loading_of(given))
        lengths = (chat["max_input_length"], chat["max_target_length"])
        template = chat["chat_template"] or loaded.chat.template
        turns = chat["train_on"] or loaded.chat.train_on, chat["system"] or loaded.chat.system
        loaded.chat, loaded.trained_with = ChatFormat(template, *turns), loaded.lengths(*lengths)
        found = show_row(loaded, examples[row - 1])
    if json:
        print_json(found.to_dict())
        return
    _print_row(found)


app.command(epilog=SHOW_EXAMPLES, cls=command_class(show))(show)


def _print_row(found: ShownRow) -> None:
    how = "by a chat template" if found.rendered else "as plain text"
    trained = sum(token.trained for token in found.tokens)
    cut = found.whole - len(found.tokens)
    out.print(
        f"{found.id} of {found.task}, {how}: {len(found.tokens)} tokens, {trained} trained on (marked), {cut} cut",
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    if found.last_only:
        out.print("trained on in its last turn alone, since the chat template writes earlier ones in another way")
    line = Text()
    for token in found.tokens:
        if token.cut:
            line.append("[...]" if token.cut < 0 else f"[... {token.cut} tokens cut ...]", "yellow")
        text = printable(token.text)
        line.append(f"«{text}»" if token.trained else f"|{text}", "bold green" if token.trained else "dim")
        if token.text.endswith("\n"):
            line.append("\n")
    out.print(line, soft_wrap=True)


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
