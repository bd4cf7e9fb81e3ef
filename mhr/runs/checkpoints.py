"""Resumable checkpoints: complete ones carry a list of their files with sizes and checksums, written last."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from mhr.errors import CheckpointError
from mhr.files import read_json, write_json_atomically

MARK = "complete.json"


def mark_complete(folder: Path) -> None:
    """List the files of a checkpoint, which says that it is complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARK)
    write_json_atomically(
        folder / MARK, {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    )


def fault_of(folder: Path) -> str | None:
    """What keeps a checkpoint from being used, or None where it is complete and sound."""
    if not (folder / MARK).is_file():
        return "it was being written when the run ended"
    try:
        files = read_json(folder / MARK, CheckpointError)
    except CheckpointError as error:
        return str(error)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if _sha256(path) != expected["sha256"]:
            return f"{name} is damaged"
    return None


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step at which a checkpoint was made."""
    return int(folder.name.removeprefix("checkpoint-"))


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that can be used, and a line for every newer one that cannot.

    Raises CheckpointError where there were complete ones, and all of them are damaged: to start over is not what was asked for.
    """
    skipped: list[str] = []
    damaged = None
    for checkpoint in all_checkpoints(folder):
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint, skipped
        skipped.append(f"skipped {checkpoint}: {fault}")
        if damaged is None and (checkpoint / MARK).is_file():
            damaged = f"{checkpoint.name}: {fault}"
    if damaged is not None:
        raise CheckpointError(
            f"none of the {len(skipped)} checkpoints in {folder} can be used ({damaged}): restore one from a copy, or start over "
            "with --overwrite"
        )
    return None, skipped


def keep_newest(folder: Path, number: int, step: int) -> None:
    """Delete all but the `number` newest complete checkpoints up to a step; what is incomplete goes too. Those of later steps, which a
    resumed run went past as they are damaged, are left for it to replace."""
    known = [p for p in all_checkpoints(folder) if step_of(p) <= step]
    complete = [p for p in known if (p / MARK).is_file()]
    for checkpoint in known:
        if checkpoint not in complete[:number]:
            # The mark goes first: a kill in between must not leave a mark on half a checkpoint.
            (checkpoint / MARK).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
