"""How a base model is named to others: as the user named it, not by where it lay on the machine that trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

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


def commit_here(name: str | None, revision: str | None) -> str | None:
    """The hub's commit of which a base model's configuration is on this machine; None where none is, and for what is not from the hub."""
    if not name or is_local(name) or is_builtin(name):
        return None
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision, cache_dir=constants.HF_HUB_CACHE)
    except HFValidationError:
        return None
    return Path(found).parent.name if isinstance(found, str) else None  # .../snapshots/COMMIT/config.json


def _place(name: str) -> str:
    return str(Path(name).resolve()) if is_local(name) else name
