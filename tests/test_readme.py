"""README keeps its word: its commands parse, its tour and its Python run."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.running import COMMAND, invoke

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines() if line]
INLINE = [text.replace("\\|", "|") for text in re.findall(r"`(mhr \w+ [^`]+|make [^`]+)`", TEXT)]
TOUR = [
    line
    for line in COMMANDS
    if line.startswith(("mhr pretrain --preset demo", "mhr adapt", "mhr evaluate", "mhr merge", "mhr inspect"))
]
# What makes a command of the tour quick without changing what it does.
QUICK = {
    "pretrain": ["--steps", "2"],
    "adapt": ["--steps", "2"],
    "evaluate": ["--limit", "2"],
    "merge": [],
    "inspect": [],
}


def parse(arguments: list[str]) -> None:
    """Read the flags of a command line as `mhr` would, and stop there."""
    command = COMMAND
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)


@pytest.mark.parametrize(
    "line", [line for line in [*COMMANDS, *INLINE] if "..." not in line and not re.search("[A-Z|]{2}", line)]
)
def test_a_command_parses(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert targets is not None
        assert set(arguments) <= set(targets.group(1).split())
    else:
        assert program == "mhr"
        parse(arguments)


def test_the_table_lists_every_command() -> None:
    commands = TEXT.partition("\n## Commands\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `mhr ([\w-]+)", commands, re.MULTILINE)
    assert sorted(listed) == sorted(COMMAND.commands)


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the tour was walked, in README's order."""
    folder = tmp_path_factory.mktemp("tour")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in TOUR:
            arguments = shlex.split(line)[1:]
            result = invoke(*arguments, *QUICK[arguments[0]])
            assert result.exit_code == 0, result.stderr
    finally:
        os.chdir(before)
    return folder


def test_the_tour_writes_what_it_says(tour: Path) -> None:
    assert len(TOUR) == 5
    assert (tour / "lora" / "adapter_model.safetensors").is_file()
    assert (tour / "runs" / "plots" / "routing.png").is_file()


def test_python_runs(tour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tour)
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
