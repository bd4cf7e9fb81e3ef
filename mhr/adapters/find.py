"""Adapters found on disk: in runs, in folders of runs, as adapter checkpoints, as PEFT folders."""

from __future__ import annotations

from pathlib import Path

from mhr.adapters.checkpoint import is_adapter
from mhr.adapters.index import folder_of, read_index
from mhr.adapters.peft import is_peft
from mhr.errors import CheckpointError
from mhr.files import is_index
from mhr.runs.run import RUN_FILE, RunFolder


def find_adapter(path: str | Path) -> Path:
    """The adapter in `path`: the folder itself, or the `adapter` folder of a run. Raises CheckpointError for neither."""
    path = Path(path)
    for folder in (path, path / "adapter"):
        if is_adapter(folder) or is_peft(folder):
            return folder
    if path.is_file():
        raise CheckpointError(
            f"no adapter at {path}: it is a file; mhr import takes checkpoints that other programs wrote into a run"
        )
    if not path.is_dir():
        raise CheckpointError(f"no adapter at {path}: there is no such folder")
    inside = _inside(path)
    if inside:
        raise CheckpointError(f"{path} holds {len(inside)} adapters: name one of them, as in {inside[0]}")
    if (path / RUN_FILE).is_file():
        run = RunFolder.open(path)
        if run.status != "done":
            raise CheckpointError(f"no adapter at {path}: its run is not done (status {run.status!r}), finish it first")
        if run.model.is_dir():
            raise CheckpointError(
                f"no adapter at {path}: its run trained all weights, and {run.model} is the model that came out; adapters are "
                "what is merged"
            )
    raise CheckpointError(f"no adapter at {path}: expected a run folder, an adapter checkpoint or a PEFT folder")


def find_adapters(path: str | Path) -> list[Path]:
    """`path` itself where `find_adapter` finds one in it, or else the folders in it, or one deeper, where it does.

    So a folder of seeds, as `mhr adapt` writes them, stands for all of them. Raises CheckpointError where there is none.
    """
    path = Path(path)
    inside = [] if (path / RUN_FILE).is_file() or _holds_one(path) else _inside(path)
    if not inside:
        find_adapter(path)
        return [path]
    for folder in inside:
        find_adapter(folder)
    return inside


def _holds_one(path: Path) -> bool:
    return any(is_adapter(folder) or is_peft(folder) for folder in (path, path / "adapter"))


def _inside(path: Path) -> list[Path]:
    """Runs and adapters that lie in a folder, not deeper than a task and a seed; of one with an index the adapters of its tasks, without
    their average."""
    if is_index(path):
        index = read_index(path)
        return [folder_of(path, task) for task in index.tasks]
    found: list[Path] = []
    for child in sorted(path.iterdir()) if path.is_dir() else []:
        if _holds_one(child) or (child / RUN_FILE).is_file():
            found.append(child)
        elif child.is_dir():
            found += [f for f in sorted(child.iterdir()) if _holds_one(f) or (f / RUN_FILE).is_file()]
    return found


def run_of(path: Path) -> RunFolder | None:
    """The run that a path names, if it is one whose settings are there."""
    return RunFolder.open(path) if (path / RUN_FILE).is_file() and (path / "config.yaml").is_file() else None
