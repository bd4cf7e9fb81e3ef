"""The pages in docs keep their word: their commands parse, and their Python runs, block after block."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from importlib import resources
from pathlib import Path

import pytest

from mhr.data.templates import packaged_templates, read_templates
from mhr.methods import ROUTING_METHODS
from mhr.runs.config import all_settings, presets
from tests.test_readme import TEXT, parse

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
EXTENDING = re.findall(r"`([^`\n]+)`", PAGES["data.md"].partition("## Another format")[2].partition("\n## ")[0])
"""What stands in backticks in the section on formats of one's own."""


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


@pytest.mark.parametrize("name", packaged_templates())
def test_the_tasks_of_packaged_templates_are_those_that_are_named(name: str) -> None:
    (row,) = [line for line in PAGES["prompts.md"].splitlines() if line.startswith(f"| `{name}`")]
    assert re.findall(r"`(\w+)`", row.split("|")[2]) == sorted(task.strip("*") for task in read_templates(name).by_task)


@pytest.mark.parametrize("name", EXTENDING)
def test_what_a_page_says_to_extend_is_there(name: str) -> None:
    """Places, decorators, classes, functions and their arguments."""
    if "/" in name:
        assert (ROOT / name).exists()
    else:
        word = name.removeprefix("@").partition("(")[0]
        sources = "".join(file.read_text("utf-8") for file in (ROOT / "mhr" / "data").rglob("*.py"))
        assert re.search(rf"^(?:class|def) {word}\b|^    {word}: ", sources, re.MULTILINE)


def test_settings_that_are_named_exist() -> None:
    """In the pages, README and presets, in commands and in words; NAME and KEY stand for any."""
    files = resources.files("mhr.runs").joinpath("presets")
    texts = PAGES | {"README": TEXT} | {name: files.joinpath(f"{name}.yaml").read_text("utf-8") for name in presets()}
    word = r"(?<![\w./])((?:train|data|adapt|adapter)\.[a-z_]+(?:\.[a-z_]+)*)(?![\w(/]|\.[a-z])"
    named = {(page, name) for page, text in texts.items() for name in re.findall(word, text) if name != "data.md"}
    own = {field.name for row in ROUTING_METHODS.values() if row.settings for field in fields(row.settings)}
    known = all_settings().keys() | {f"adapter.router.{name}" for name in own}
    assert ("few-shot.md", "data.train_seed") in named
    assert not sorted((page, name) for page, name in named if name not in known)
