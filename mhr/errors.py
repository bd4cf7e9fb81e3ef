"""User errors: each carries one line that says what was got, what was expected and how to fix it.

The command line prints that line and exits with code 2. Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MhrError(Exception):
    """Base of every user error."""


class ConfigError(MhrError):
    """A setting that is unknown, of the wrong type, out of range, or that does not fit another setting."""


class TargetError(ConfigError):
    """Adapter targets that match no layer, or a layer that the configuration does not fit."""


class TaskError(MhrError):
    """A task name that is unknown, repeated or missing."""


class DataError(MhrError):
    """A task file, folder or example that cannot be read or breaks the contract of its format."""


class CheckpointError(MhrError):
    """A checkpoint that is missing, damaged, of another version, or of another base model."""


class TrainingError(MhrError):
    """Training that cannot go on: a loss that is not finite, an output folder that is in use."""


class DivergedError(TrainingError):
    """A loss, or a model's scores, that are no finite numbers: a learning rate that is too high, or a precision that is too low."""


class MergeError(MhrError):
    """Inputs that cannot be merged with one another, or not in the way that was asked for."""


NO_MEMORY = ("can't allocate memory", "out of memory")
"""What torch says in a RuntimeError where the processor or a GPU has no memory left."""


def out_of_memory(error: BaseException) -> str | None:
    """One line on an error that says that there is no memory left; None for any other error."""
    if not (isinstance(error, MemoryError) or any(mark in str(error) for mark in NO_MEMORY)):
        return None
    what = str(error).partition("\n")[0].partition(". ")[0]
    return f"out of memory ({what or 'of the machine'}): use a smaller batch size, rank or model"


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """The part of an error line that helps with a mistyped name.

    Returns "did you mean 'a' or 'b'?" with the nearest of `known`, or "known: 'a', 'b', ..." where none is near.
    """
    names = [str(k) for k in known]
    lowered = {n.lower(): n for n in names}
    near = [lowered[m] for m in difflib.get_close_matches(str(name).lower(), list(lowered), n=limit, cutoff=0.5)]
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    if not names:
        return "none is known"
    shown = ", ".join(repr(n) for n in sorted(names)[:12])
    return f"known: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")
