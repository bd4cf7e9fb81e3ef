"""Files and folders that appear whole or not at all, and the one check of an output folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mhr.errors import MhrError

MOST_NAME = 255
"""Most bytes of a name that file systems take."""

# A folder that holds one of these was written by us, so that --overwrite may replace it. A model of transformers or an adapter
# of PEFT says nothing of who made it; those that mhr merge writes hold its report.
OUTPUT_MARKS = (
    "run.json",
    "adapt.json",
    "sweep.json",
    "demo.json",
    "demo_llm.json",
    "mhr_config.json",
    "merge_report.json",
    "extract_report.json",
    "evaluation.json",
    "harness.json",
    "inspection.json",
    "report.json",
)

INDEX_FILE, INDEX_FORMAT = "index.json", "mhr-index"
"""The mark of a folder of adapters, one a task, and what its "format" says: other programs have files of this name."""

LEFT_BEHIND = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of what was being written when a process was killed: an output folder that holds nothing else is empty."""


def write_bytes_atomically(path: str | Path, data: bytes) -> Path:
    """Write a file so that `path` holds either all of `data` or what it held before, also after a kill or power loss.

    Raises MhrError for a full disk, a missing permission and the like; no temporary file is left behind.
    """
    with writing_file(path) as temporary, open(temporary, "xb") as file:
        file.write(data)
    return Path(path)


def write_text_atomically(path: str | Path, text: str) -> Path:
    """`write_bytes_atomically` for text in UTF-8."""
    return write_bytes_atomically(path, text.encode())


def write_json_atomically(path: str | Path, value: Any) -> Path:
    """`write_bytes_atomically` for a JSON value, indented, with a newline at the end. NaN and infinities are refused."""
    return write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def writing_file(path: str | Path) -> Iterator[Path]:
    """A temporary path, for a file that takes the place of `path` when the block ends, and vanishes when it raises.

    Raises MhrError for a full disk, a missing permission and the like.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends, and vanishes when it raises.

    What `path` held before is replaced as a whole; where it is a link, in the folder that it leads to. A folder that cannot be put in the
    place of another (a mount point, one in a folder without permission) or is not to be (the working directory) is filled instead,
    at the end. Raises MhrError for a full disk, a missing permission and the like.
    """
    path = Path(path).resolve()
    filled = path.is_dir() and (path.is_mount() or path == Path.cwd() or not os.access(path.parent, os.W_OK | os.X_OK))
    temporary = (path if filled else path.parent) / f".{path.name}.{secrets.token_hex(4)}.tmp"
    with writing(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            (_fill if filled else _put_in_place)(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def cache_folder() -> Path:
    """Where what can be made again is kept between commands: MHR_CACHE, else `mhr` in the user's own cache folder. Not made here."""
    if os.environ.get("MHR_CACHE"):
        return Path(os.environ["MHR_CACHE"]).expanduser()
    places = [os.environ.get(name) for name in ("XDG_CACHE_HOME", "LOCALAPPDATA")]
    return Path(next(filter(None, places), None) or Path.home() / ".cache") / "mhr"


def prepare_output(path: str | Path, overwrite: bool = False, reads: Iterable[str | Path | None] = ()) -> Path:
    """The output folder `path`, checked but not yet made: see `make_folder` and `writing_folder`.

    reads  what is read to write it, such as the base model and the tasks: paths, and names that are none

    Raises MhrError where it is a file, where it holds something of `reads`, where it is not empty and `overwrite` is off,
    where it is not empty and nothing in it says that it is an output (so that a mistyped path costs nothing), and where it
    cannot be written.
    """
    path = Path(path)
    for read in reads:
        if read and Path(read).exists() and Path(read).resolve().is_relative_to(path.resolve()):
            raise MhrError(f"output folder {path} holds the input {read}: choose another")
    if path.exists() and not path.is_dir():
        raise MhrError(f"output folder {path} is a file: choose another path")
    held = held_in(path)
    if held and not overwrite:
        raise MhrError(
            f"output folder {path} is not empty: choose another, or pass --overwrite to replace what is there"
        )
    if held and not any(mark in held for mark in OUTPUT_MARKS) and not is_index(path):
        shown = ", ".join(held[:3]) + (" ..." if len(held) > 3 else "")
        raise MhrError(
            f"output folder {path} holds {shown} and no output of mhr, so --overwrite leaves it alone: choose another folder"
        )
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise MhrError(f"cannot write {path}: no permission to write in {parent}; choose another output folder")
    return path


def is_index(path: str | Path) -> bool:
    """Whether a folder holds one adapter for each task and their INDEX_FILE, complete or not."""
    file = Path(path) / INDEX_FILE
    try:
        return file.is_file() and read_json(file).get("format") == INDEX_FORMAT
    except MhrError:
        return False


def held_in(path: str | Path) -> list[str]:
    """What a folder holds, in order, but for what was LEFT_BEHIND; nothing where there is no folder."""
    path = Path(path)
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    return [name for name in found if not LEFT_BEHIND.fullmatch(name)]


def make_folder(path: str | Path) -> Path:
    """The folder, made with its parents if it is missing. Raises MhrError where that cannot be done."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def read_json(path: str | Path, error: type[MhrError] = MhrError) -> dict[str, Any]:
    """The JSON object in a file. Raises `error` for a missing or unreadable file, broken JSON, and JSON of another shape."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        raise error(
            f"{path}:{fault.lineno} is no valid JSON ({fault.msg}): the file is truncated or edited by hand"
        ) from None
    except UnicodeDecodeError:
        raise error(f"{path} is no text in UTF-8: expected a JSON file") from None
    except RecursionError:
        raise error(f"{path} holds JSON that is nested too deep: it is damaged or edited by hand") from None
    except ValueError as fault:  # an integer of thousands of digits
        raise error(f"{path} holds JSON that cannot be read ({fault}): it is damaged or edited by hand") from None
    except OSError as fault:
        raise error(f"cannot read {path}: {fault.strerror or fault}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError in the block, or what torch and safetensors raise in its place, into one line that names `path`."""
    try:
        yield
    except Exception as fault:
        if not _is_from_writing(fault):
            raise
        number = getattr(fault, "errno", None)
        fix = "choose another output folder"
        if number == errno.ENOENT and not Path(path).parent.exists():
            fix = f"{Path(path).parent} is gone: was it deleted or moved meanwhile?"
        elif number in (None, errno.ENOSPC, errno.EDQUOT):
            fix = "free some space or choose another output folder"
        what = getattr(fault, "strerror", None) or str(fault).partition("\n")[0]
        raise MhrError(f"cannot write {path}: {what}; {fix}") from fault


def _is_from_writing(fault: Exception) -> bool:
    """torch.save raises RuntimeError for a full disk, safetensors an error of its own, both without the system's number."""
    marks = ("PytorchStreamWriter", "inline_container.cc", "iostream error", "I/O error")
    return isinstance(fault, OSError) or any(mark in str(fault) for mark in marks)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished folder to `path`; a folder that is there steps aside until the new one stands."""
    aside = None
    if path.exists() and any(path.iterdir()):
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        if aside is not None:
            os.rename(aside, path)
        raise
    _sync_folder(path.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _fill(temporary: Path, path: Path) -> None:
    """Rename what a finished folder inside `path` holds to `path`; what is there steps aside until all of it stands."""
    aside = path / f".{path.name}.{secrets.token_hex(4)}.tmp"
    aside.mkdir()
    moves = [(entry, aside / entry.name) for entry in path.iterdir() if entry not in (temporary, aside)]
    moves += [(entry, path / entry.name) for entry in temporary.iterdir()]
    done: list[tuple[Path, Path]] = []
    try:
        for old, new in moves:
            os.rename(old, new)
            done.append((old, new))
    except OSError:
        for old, new in reversed(done):
            os.rename(new, old)
        aside.rmdir()
        raise
    _sync_folder(path)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    """Make a rename in this folder lasting, where the system can (Windows opens no folders)."""
    if os.name == "posix":
        _sync(path)


def folder_name(name: str, *, most: int = MOST_NAME, dots: bool = True) -> str:
    """A name of anything as the name of a folder: what a path would read otherwise is written as %XX, also in "." and "..".

    What is longer than `most` bytes (at least 162) ends in "%~" and the digest of the name, which no other name does. Without `dots`,
    those are written as %2E too.
    """
    quoted = quote(name, safe=" ")
    if not dots or name in (".", ".."):
        quoted = quoted.replace(".", "%2E")
    if len(quoted) <= most:
        return quoted
    digest = hashlib.sha256(name.encode()).hexdigest()[:40]
    return re.sub("%.?$", "", quoted[:120]) + "%~" + digest
