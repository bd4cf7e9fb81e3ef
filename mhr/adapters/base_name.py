"""How a base model is named to others: as the user named it, not by where it lay on the machine that trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mhr.adapters.base import BaseModel
from mhr.backbones import is_builtin, is_gguf
from mhr.runs.run import RunFolder


def name_as_given(base: BaseModel, runs: Iterable[RunFolder] = (), given: str | None = None) -> str:
    """The name that `given` is or that the settings of a run have, where these mean this base model; otherwise the recorded one.

    A hub id stays one. A relative path begins with a dot, so that nobody takes it for a hub id.
    """
    names = [given] if given else [run.config().model for run in runs]
    name = next((n for n in names if given or _place(n) == _place(base.name_or_path)), base.name_or_path)
    relative = is_local(name) and not Path(name).is_absolute() and not name.startswith((".", "~"))
    return f"./{name}" if relative else name


def is_local(name: str) -> bool:
    """Whether the name of a base model is a path, there or not."""
    if not name or is_builtin(name):
        return False
    return Path(name).is_absolute() or name.startswith((".", "~")) or is_gguf(name) or Path(name).is_dir()


def _place(name: str) -> str:
    return str(Path(name).resolve()) if is_local(name) else name
