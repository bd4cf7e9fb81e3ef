"""The group that all commands hang from: a user error is one line on stderr and exit code 2.

Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import shlex
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from mhr.errors import MhrError, out_of_memory

from .console import note, print_error

FIXES = {
    errno.ENOSPC: "free some space, or write elsewhere with --output",
    errno.EDQUOT: "free some space, or write elsewhere with --output",
    errno.EFBIG: "write elsewhere with --output, or raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "write elsewhere with --output",
    errno.ENOENT: "check the path; an output folder must not be moved or deleted while it is written",
    errno.ENAMETOOLONG: "use a shorter name",
}

LOST = ("Connection closed by peer", "Connection reset by peer")
"""What torch says in a RuntimeError where another process has ended in the middle of their talk."""

RESUMABLE = ("adapt", "demo", "predict", "pretrain", "sweep")

UsageError = typer.BadParameter.__mro__[1]
"""What click raises for options that there are not, missing values and the like."""


class Commands(TyperGroup):
    """Exit codes: 0 done, 1 a bug, 2 a user error, 130 interrupted."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                raise
            raise _refused(error.format_message()) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MhrError as error:
            raise _refused(str(error)) from None
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                raise
            where = error.ctx.command_path if error.ctx else "mhr"
            raise _refused(f"{error.format_message()} See {where} --help.") from None
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not package or package.startswith("mhr"):
                raise
            raise _refused(f"this needs the package {package}, which is not installed: pip install {package}") from None
        except (MemoryError, RuntimeError) as error:
            if any(mark in str(error) for mark in LOST):
                raise _refused("another of the processes has ended: what it said has the reason") from None
            told = out_of_memory(error)
            if told is None:
                raise
            raise _refused(told) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _refused(_describe(error)) from None
        except KeyboardInterrupt as error:
            note(f"Interrupted. {error}".strip())
            note(_how_to_go_on(ctx.invoked_subcommand, sys.argv[1:]))
            raise typer.Exit(130) from None


def _refused(message: str) -> typer.Exit:
    print_error(message)
    return typer.Exit(2)


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    fix = FIXES.get(error.errno or 0)
    return where + (error.strerror or str(error)) + (f"; {fix}" if fix else "")


def _how_to_go_on(command: str | None, arguments: list[str]) -> str:
    flags = {argument.partition("=")[0] for argument in arguments}
    if command == "merge" and "--each-task" in flags:
        return f"Go on with: {shlex.join(['mhr', *(a for a in arguments if a != '--overwrite')])}"
    if command not in RESUMABLE or (command == "predict" and not flags & {"--output", "-o"}):
        return "Nothing was written."
    kept = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    return f"Go on with: {shlex.join(['mhr', *kept, '--resume'])}"
