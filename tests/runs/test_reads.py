"""What a command reads is not deleted with an earlier output, whichever setting names it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mhr.demo import run_demo
from mhr.demo_llm import run_demo_llm
from mhr.errors import MhrError
from mhr.experts import route_tokens
from mhr.few_shot import adapt
from mhr.files import prepare_output
from mhr.methods import ROUTING_METHODS
from mhr.runs import RunConfig, RunFolder, load_config
from mhr.runs.config import all_settings
from mhr.runs.route_settings import RouteConfig
from mhr.runs.settings import paths_read
from mhr.setting import Setting, settings_of
from mhr.sweeps import sweep
from mhr.training import pretrain

READS = [name for name, (_, known) in all_settings().items() if known.reads]
ROUTED = {
    row.name: name
    for row in ROUTING_METHODS.values()
    for name, (_, known) in (settings_of(row.settings) if row.settings else {}).items()
    if known.reads
}
NEEDED: dict[str, dict[str, Any]] = {"adapt.encoder": {"adapt.start": "nearest"}}
"""Other settings without which one has no effect."""


def every() -> Iterator[tuple[str, Any, Setting]]:
    sections = {"route": RouteConfig} | {name: row.settings for name, row in ROUTING_METHODS.items() if row.settings}
    for name, found in all_settings().items():
        yield name, *found
    for section, cls in sections.items():
        for name, found in settings_of(cls).items():
            yield f"{section}.{name}", *found


def test_a_setting_whose_help_names_a_file_or_folder_is_one_of_what_is_read() -> None:
    told = re.compile(r"\b(hub id|folders?|collection|(YAML|Jinja) file)\b", re.IGNORECASE)
    named = {
        name for name, hint, known in every() if "str" in str(hint) and told.search(known.doc.partition(" Unset")[0])
    }
    assert named - {"data.on_bad_row"} == {name for name, _, known in every() if known.reads} - {"continue_from"}


@pytest.fixture
def held(tmp_path: Path) -> tuple[Path, Path]:
    """An output folder of an earlier run, and a file in it, which any setting may name."""
    output = tmp_path / "output"
    output.mkdir()
    (output / "run.json").write_text("{}")
    file = output / "mine.jinja"
    file.write_text("{{ messages }}")
    return output, file


def refused(output: Path, file: Path, act: Callable[[], Any]) -> None:
    before = sorted(output.rglob("*"))
    with pytest.raises(MhrError, match=f"output folder {output} holds the input {file}: choose another"):
        act()
    assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize("name", READS)
def test_each_setting_of_a_run(name: str, held: tuple[Path, Path]) -> None:
    output, file = held
    value = [str(file)] if "list" in str(all_settings()[name][0]) else str(file)
    config = load_config(**{name: value}, **NEEDED.get(name, {}))
    refused(output, file, lambda: prepare_output(output, overwrite=True, reads=paths_read(config)))


@pytest.mark.parametrize(("method", "name"), ROUTED.items())
def test_each_setting_of_a_routing_method(method: str, name: str, held: tuple[Path, Path]) -> None:
    output, file = held
    context = {} if method in ("pha", "generative-adapter") else {"context": "definition"}
    config = load_config(method=method, **{"adapter.router": {name: str(file), **context}})
    refused(output, file, lambda: prepare_output(output, overwrite=True, reads=paths_read(config)))


GIVEN: dict[str, dict[str, Any]] = {
    "dev": {"select": "best"},
    "encoder": {"start": "nearest"},
    "tasks_path": {},
    "template": {},
    "base": {},
    "chat_template": {},
}


@pytest.mark.parametrize(
    ("act", "name"), [*((adapt, name) for name in GIVEN), *((sweep, name) for name in GIVEN if name != "chat_template")]
)
def test_what_an_adaptation_is_given(
    act: Any,
    name: str,
    held: tuple[Path, Path],
    source: Callable[[str], RunFolder],
    tasks_file: Path,
) -> None:
    output, file = held
    if name in ("dev", "tasks_path"):
        file = output / "dev.jsonl"
        rows = [{**json.loads(line), "held_out": True} for line in tasks_file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name == "template":
        file = output / "words.yaml"
        file.write_text("input: '{input}'\n")
    elif name == "base":
        file = shutil.copytree(source("mhr").info["base"], output / "model")
    how: dict[str, Any] = {"mode": "mhr"} if act is adapt else {"modes": ["mhr"]}
    run = str(source("mhr").path)
    given = {name: str(file), **GIVEN[name], **how, "output": str(output), "overwrite": True, "progress": False}
    refused(output, file, lambda: act(run if act is adapt else [run], ["next-first"], **given))


def test_the_chat_template_of_a_pretraining(held: tuple[Path, Path], settings: Callable[..., RunConfig]) -> None:
    output, file = held
    config = settings("llama", chat_template=str(file))
    refused(output, file, lambda: pretrain(config, str(output), overwrite=True))


@pytest.mark.parametrize(
    "act",
    [
        lambda output, file: route_tokens("anything", method="phatgoose", tasks=file, output=output, overwrite=True),
        lambda output, file: route_tokens("anything", subtract=[file], output=output, overwrite=True),
        lambda output, file: run_demo(output, overrides=[f"data.template={file}"], overwrite=True),
        lambda output, file: run_demo_llm(output, overrides=[f"data.template={file}"], overwrite=True),
    ],
    ids=["route tasks", "route subtract", "demo", "demo llm"],
)
def test_what_other_commands_are_given(act: Callable[[str, str], Any], held: tuple[Path, Path]) -> None:
    output, file = held
    file.write_text("input: '{input}'\n")
    refused(output, file, lambda: act(str(output), str(file)))
