"""`mhr predict`: the answers of a model to texts, lines of standard input, or the rows of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mhr.errors import ConfigError, DataError
from mhr.files import is_index

from .evaluate import Target, unescaped
from .frame import options
from .frame.console import note, print_json, working
from .frame.settings import Given, loading_of, takes

if TYPE_CHECKING:
    from mhr.data import Example
    from mhr.prediction import Answer

EXAMPLES = """**Examples**

mhr predict runs/mhr --task rev-last "rev last: abcd"

mhr predict runs/mhr --input rows.jsonl --output answers.jsonl

mhr predict my-decoder --chat-template auto --stream "Name three rivers."

cat questions.txt | mhr predict lora --choices yes,no
"""

STANDARD_INPUT = "line of standard input"


@takes(
    "predict",
    "loading",
    "data.column_map",
    "data.template",
    "data.prompt",
    "data.verbalizers",
    "data.chat_template",
    "data.system",
    of_run=("data.column_map", "data.template", "data.prompt", "data.verbalizers", "data.chat_template", "data.system"),
    common=(
        *("--task", "--choices", "--input", "--output", "--resume", "--overwrite", "--json", "--stream", "--max-new-tokens"),
        *("--temperature", "--top-p", "--batch-size", "--model", "--chat-template"),
    ),
)  # fmt: skip
def predict(
    path: Target,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts to answer. None: the lines of standard input.", show_default=False),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Rows to answer, in place of texts: JSONL, JSON, CSV, TSV or Parquet, with a column input (or a conversation), and "
            "task and choices where they have them.",
            rich_help_panel=options.WHERE,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="JSONL to write, a line for each row as it is answered.",
            rich_help_panel=options.WHERE,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Answer the rows that --output lacks.", rich_help_panel=options.WHERE),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what --output holds.", rich_help_panel=options.WHERE),
    ] = False,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Print answers as they are generated, one after the other."),
    ] = False,
    json: options.Json = False,
    *,
    given: Given,
) -> None:
    """Answer texts, lines of standard input or the rows of a file, each by its task; rows with choices get the best of them.

    Answers are printed in the order of the texts, one a line, where a new line inside one of several is printed as \\n. With --output
    they become rows of JSONL.
    """
    if texts and rows is not None:
        raise ConfigError("texts and --input are both given: leave one out")
    for name, said in (("--resume", resume), ("--overwrite", overwrite)):
        if said and output is None:
            raise ConfigError(f"{name} is for --output, which is not given: add it, or leave {name} out")
    if stream and (output is not None or json):
        raise ConfigError(f"--stream prints answers, but {'--json' if json else '--output'} is given: leave one out")
    if rows is None and "--columns" in given.said():
        raise ConfigError("--columns is for the rows of --input, which is not given: leave it out")
    settings = given.values("predict")
    if "stop" in settings:
        settings["stop"] = [unescaped(text) for text in settings["stop"]]
    if stream and "choices" in settings:
        raise ConfigError("--stream prints answers as they are generated, but choices are ranked: leave one out")
    asked = list(texts or ()) if rows is not None or texts else _lines()
    shown = sys.stdout
    with working():
        import mhr
        from mhr.data.questions import ask_texts, read_questions
        from mhr.prediction import PredictConfig
        from mhr.prediction.files import answer_into, check_answer_file

        config = PredictConfig(**settings)
        if output is not None:
            check_answer_file(output, overwrite=overwrite, resume=resume)
        if rows is not None and not rows.exists():
            raise DataError(f"--input {rows}: no such file or folder")
        one = config.task if is_index(path) else None
        predictor = mhr.load(path, task=one, **loading_of(given), **given.values("data"))
        predictor.check(config)
        task = predictor.default_task(config)
        known: dict[str, Any] = {"choices": config.choices or ()}
        if rows is None:
            examples = ask_texts(asked, predictor.reading, task, origin="text" if texts else STANDARD_INPUT, **known)
        else:
            examples = read_questions(rows, predictor.reading, task, only=config.task is not None, **known)
        predictor.check_used(examples, config)
        if output is not None:
            done = answer_into(output, predictor, examples, config, overwrite=overwrite, resume=resume)
            answers: list[Answer] = []
        elif stream:
            answers = _streamed(predictor, examples, config, shown)
        else:
            answers = predictor.answer(examples, config)
    if output is not None:
        if json:
            print_json({"output": str(output), "rows": done.rows, "kept": done.kept, "truncated": done.truncated})
        kept = f", {done.kept} of them there already" if done.kept else ""
        _note_truncated(done.truncated, done.rows - done.kept)
        note(f"Written: {done.rows} answers{kept}, in {output}")
        return
    if json:
        from mhr.prediction.files import line_of

        print_json([line_of(example, answer) for example, answer in zip(examples, answers, strict=True)])
    elif not stream:
        for answer in answers:
            print(answer.text if len(answers) == 1 else answer.text.replace("\n", "\\n"))
        if len(answers) == 1 and answers[0].choices:
            ranked = sorted(zip(answers[0].scores, answers[0].choices, strict=True), reverse=True)
            note(", ".join(f"{choice} {score:.3f}" for score, choice in ranked))
    _note_truncated(sum(answer.truncated for answer in answers), len(answers))


def _streamed(predictor: Any, examples: Sequence[Example], config: Any, shown: Any) -> list[Answer]:
    """The answers, each printed as it is generated."""

    def say(piece: str) -> None:
        shown.write(piece)
        shown.flush()

    answers = []
    for place, example in enumerate(examples):
        answers += predictor.answer([example], config, first=place, stream=say)
        say("\n" if answers[-1].how == "generation" else answers[-1].text + "\n")
    return answers


def _note_truncated(number: int, of: int) -> None:
    if number:
        note(f"inputs truncated: {number} of {of} (--max-input-length)")


def _lines() -> list[str]:
    """The lines of standard input."""
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("no text is given: give some, --input FILE, or lines on standard input")
    return decoded(sys.stdin.buffer.read())


def decoded(content: bytes) -> list[str]:
    """Text in lines, without a byte-order mark and without empty lines at its end. Raises DataError where it is no UTF-8, or empty."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"standard input, line {line}: byte {error.object[error.start]:#04x} is no UTF-8: convert it (iconv -t UTF-8)"
        ) from None
    # U+2028 and its like are no ends of lines here.
    lines = text.replace("\r\n", "\n").rstrip().split("\n")
    if lines == [""]:
        raise DataError("standard input holds no text: expected one on each line")
    return lines
