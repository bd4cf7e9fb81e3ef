"""The pages in docs keep their word: their commands parse, and their Python runs, block after block."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.test_readme import parse

PAGES = {page.name: page.read_text("utf-8") for page in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


COMMANDS = [
    (page, line)
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("mhr ") and "..." not in line
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_parses(page: str, line: str) -> None:
    parse(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks(page, "python")), page, "exec"), {"__name__": "docs"})
