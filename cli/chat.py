"""`mhr chat`: a conversation with a decoder in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from mhr.errors import nearest
from mhr.files import is_index

from .evaluate import Target, unescaped
from .frame.console import note, out, working
from .frame.settings import Given, loading_of, takes
from .predict import decoded

EXAMPLES = """**Examples**

mhr chat runs/chats --task sums

mhr chat builtin:smollm2-135m --system "Answer in one sentence." --temperature 0.7 --top-p 0.9
"""

COMMANDS = {"/reset": "forget what was said", "/quit": "end"}


@takes(
    "predict.task",
    "predict.unseen",
    "predict.max_new_tokens",
    "predict.max_input_length",
    "predict.temperature",
    "predict.top_p",
    "predict.seed",
    "predict.stop",
    "loading",
    "data.chat_template",
    "data.system",
    of_run=("data.chat_template", "data.system"),
    common=(
        *("--task", "--system", "--chat-template", "--max-new-tokens", "--temperature", "--top-p", "--seed", "--model"),
        *("--dtype", "--quantize"),
    ),
)  # fmt: skip
def chat(path: Target, *, given: Given) -> None:
    """Talk to a decoder by its chat template; what was said is kept and read again with each turn.

    A line is a turn. /reset forgets what was said, /quit (or the end of the input) ends; Ctrl-C ends an answer, which is forgotten.
    """
    settings = given.values("predict")
    if "stop" in settings:
        settings["stop"] = [unescaped(text) for text in settings["stop"]]
    shown = sys.stdout
    with working():
        import mhr
        from mhr.prediction import Chat, PredictConfig

        one = settings.get("task") if is_index(path) else None
        predictor = mhr.load(path, task=one, **loading_of(given), **given.values("data"))
        talk = Chat(predictor, PredictConfig(**settings))
    task = talk.predictor.default_task(talk.config)
    commands = ", ".join(f"{name}: {what}" for name, what in COMMANDS.items())
    note(f"{talk.predictor.loaded.description}{f', task {task}' if task else ''} ({commands})")

    def say(piece: str) -> None:
        shown.write(piece)
        shown.flush()

    for line in _turns():
        if line == "/quit":
            break
        if line == "/reset":
            talk.reset()
            note("What was said is forgotten.")
        elif re.fullmatch(r"/[a-z]+", line):
            note(f"unknown command {line!r}: {nearest(line, COMMANDS)}")
        else:
            _answer(talk, line, say)


def _answer(talk: Any, line: str, say: Any) -> None:
    """Print the answer to a turn as it is generated."""
    try:
        with working():
            answer = talk.say(line, stream=say)
    except KeyboardInterrupt:
        say("\n")
        note("Interrupted: this turn is forgotten.")
        return
    say("\n")
    if answer.truncated:
        note("What was said is longer than the model reads: its middle was left out (/reset forgets it).")


def _turns() -> Iterator[str]:
    """What the user says, line by line: typed behind a prompt, or piped in."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in decoded(sys.stdin.buffer.read()) if line.strip())
        return
    while True:
        try:
            line = out.input("[bold cyan]you>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if line:
            yield line
