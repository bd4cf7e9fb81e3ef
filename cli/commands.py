"""The group that all commands hang from: a fault that the user can mend is one line on stderr and exit code 2.

Any other exception is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import shlex
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from mhr.errors import MhrError

from .console import note, print_error

MENDS = {
    errno.ENOSPC: "free some space, or write elsewhere with --output",
    errno.EDQUOT: "free some space, or write elsewhere with --output",
    errno.EFBIG: "write elsewhere with --output, or raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "write elsewhere with --output",
    errno.ENOENT: "check the path",
}

RESUMABLE = ("adapt", "demo", "pretrain", "sweep")


class Commands(TyperGroup):
    """Exit codes: 0 done, 1 a fault of ours, 2 a fault the user can mend, 130 interrupted."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MhrError as error:
            print_error(str(error))
            raise typer.Exit(2) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            print_error(_describe(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt as error:
            note(f"Interrupted. {error}".strip())
            note(_how_to_go_on(ctx.invoked_subcommand, sys.argv[1:]))
            raise typer.Exit(130) from None


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    mend = MENDS.get(error.errno or 0)
    return where + (error.strerror or str(error)) + (f"; {mend}" if mend else "")


def _how_to_go_on(command: str | None, arguments: list[str]) -> str:
    if command not in RESUMABLE:
        return "Nothing was written."
    kept = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    return f"Go on with: {shlex.join(['mhr', *kept, '--resume'])}"
