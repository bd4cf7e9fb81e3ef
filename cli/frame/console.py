"""Where output goes: results to stdout, everything else to stderr, so that a program can read what a command prints."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from logging import ERROR, getLogger
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .others import RANK, said_by_another

if isinstance(sys.stdout, io.TextIOWrapper):
    # A terminal without Unicode (LC_ALL=C) shows "\xe9" where it has no letter for it, as standard error does by itself.
    sys.stdout.reconfigure(errors="backslashreplace")

NAMES = 24
"""Letters that names keep in a table, however narrow the terminal is."""

out = Console(highlight=False, quiet=RANK > 0)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON value on stdout. NaN and infinities become null, which JSON has; letters that stdout lacks become escapes of JSON."""
    if RANK == 0:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=not unicode) + "\n")


def print_table(table: Table) -> None:
    """A table whose first column is one of names, which are folded into the width of the terminal, down to NAMES letters. Nothing else is
    cut, nor are they: a terminal that is narrower still breaks the lines."""
    names = table.columns[0]
    longest = max(cell_len(line) for cell in (names.header, *names.cells) for line in str(cell).splitlines())
    whole = Measurement.get(out, out.options.update_width(sys.maxsize), table).maximum
    least = whole - max(longest - NAMES, 0)
    Console(highlight=False, quiet=out.quiet, width=max(out.width, least)).print(table)


def note(message: str) -> None:
    """One line for the person who watches."""
    if RANK == 0:
        err.print(Text(message), soft_wrap=True)


def print_error(message: str) -> None:
    """One line, whatever the width of the terminal; of several processes one prints what they all have to say."""
    head = "error: " if RANK == 0 else f"error (process {RANK}): "
    line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
    if said_by_another(line):
        return
    err.print(Text.assemble((head, "bold red"), line), soft_wrap=True)


@contextlib.contextmanager
def working(models: bool = True) -> Iterator[None]:
    """Keep stdout for the result: what libraries print meanwhile goes to stderr.

    models: a model is loaded, so turn down the chatter of transformers and bitsandbytes, but not the bars of downloads.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if models:
            from huggingface_hub.utils import enable_progress_bars
            from transformers.utils import logging

            logging.set_verbosity_error()
            logging.disable_progress_bar()
            enable_progress_bars()
            # It warns wherever it is installed, of kernels that it lacks and of the dtype that it computes in.
            getLogger("bitsandbytes").setLevel(ERROR)
        yield


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
