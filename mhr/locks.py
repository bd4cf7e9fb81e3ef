"""One writer per output folder: a lock beside the folder that names the process which holds it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from mhr.errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows, where folders are written without a lock
    fcntl = None  # type: ignore[assignment]

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def locked(path: str | Path | None, *, wait: bool = False) -> Iterator[None]:
    """Inside the block, no other process writes into the output folder `path`, made or not; None locks nothing.

    The lock is the file `.NAME.lock` beside the folder, held by `flock`: the kernel gives it up with the process, however
    that ends, so a file that stayed behind is taken over. It holds who has it. Where none can be made or locked (no permission,
    a file system without locks), the block runs without one: whether the folder can be written is not for this to say.

    Raises TrainingError where another process has it, naming that one's number, host and start; with `wait`, waits until that
    one is done.
    """
    file = None if path is None or fcntl is None else _lock_file(Path(path).absolute())
    if file is None:
        yield
        return
    made = [parent for parent in file.parents if not parent.exists()]
    handle = _acquire(file, path, wait)
    try:
        yield
    finally:
        if handle is not None:
            file.unlink(missing_ok=True)  # while it is still held, so that only our own file goes
            os.close(handle)
        for parent in made:  # of a folder that was not made after all
            with contextlib.suppress(OSError):
                parent.rmdir()


def one_writer(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function with an argument `output`: it runs with that folder locked, in the first of several processes."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        first = os.environ.get("RANK", "0") == "0"  # the processes of torchrun write one folder together
        output = signature.bind(*args, **kwargs).arguments["output"]
        with locked(output if first else None):
            return function(*args, **kwargs)

    return alone


def _lock_file(folder: Path) -> Path:
    folder = Path(os.path.normpath(folder))
    return folder.with_name(f".{folder.name}.lock") if folder.name else folder / ".lock"


def _acquire(file: Path, path: str | Path | None, wait: bool) -> int | None:
    """The open and locked file, or None where there can be none."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, file):
                holder = {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
                }
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(holder).encode(), 0)
                return handle
            os.close(handle)  # whoever had it has just removed it: take the next one
        except BlockingIOError:
            who = _holder(os.pread(handle, 4096, 0))
            os.close(handle)
            raise TrainingError(
                f"output folder {path} is being written by {who}: wait for it, stop it, or choose another output folder"
            ) from None
        except OSError:
            os.close(handle)
            return None


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _holder(written: bytes) -> str:
    try:
        holder = json.loads(written)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, TypeError, KeyError):  # it has just been made
        return "another process"
