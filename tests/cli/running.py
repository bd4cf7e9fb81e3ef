"""Ways to run `mhr` in tests: in this process, which is quick, or as a process of its own."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer.testing
from typer.main import get_command
from typer.testing import CliRunner, Result

from mhr_cli.main import app

command_of = functools.cache(get_command)
"""The commands of an app, made of their functions once: at each call that takes as long as most of these tests."""
typer.testing._get_command = command_of  # type: ignore[attr-defined]

COMMAND: Any = command_of(app)
"""`mhr`, with its commands in `commands`."""

SMALL = ("--preset", "demo", "--batch-size", "4", "--n-heads", "4", "--n-skills", "2", "--rank", "2")


def invoke(*arguments: str | Path) -> Result:
    """Run `mhr` with these arguments; exceptions that are bugs come through."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def succeed(*arguments: str | Path) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refuse(*arguments: str | Path) -> str:
    """The one line that `mhr` refuses these arguments with."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def spawn(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """`mhr` as a process of its own."""
    command = [sys.executable, "-m", "mhr_cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`mhr` in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mhr_cli"]
    command = [*launcher, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


def last_line(text: str) -> str:
    return [line for line in text.splitlines() if line.strip()][-1]
