"""The frame of the command line: help, version, torch-free start, exit codes."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mhr
from mhr.data import load_tasks
from mhr.errors import ConfigError
from mhr.ops import native_ops
from mhr.runs.config import all_settings
from tests.cli.running import COMMAND, invoke, refuse, succeed
from tests.test_readme import parse

COMMANDS = (
    "pretrain",
    "adapt",
    "merge",
    "import",
    "evaluate",
    "predict",
    "chat",
    "benchmark",
    "inspect",
    "data",
    "doctor",
    "demo",
)


def test_help_lists_every_command() -> None:
    shown = succeed("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^\W+{command} ", shown, re.MULTILINE), command


@pytest.mark.parametrize("command", [*((c,) for c in COMMANDS), ("data", "check")], ids=" ".join)
def test_help_of_a_command_has_a_line_for_every_flag_and_an_example(command: tuple[str, ...]) -> None:
    shown = succeed(*command, "--help").stdout
    if command != ("data",):
        assert f"mhr {' '.join(command)}" in shown.partition("Examples")[2]
    found = command_called(command)
    for parameter in found.params:
        assert parameter.help, parameter.name


@pytest.mark.parametrize("command", [c for c in COMMAND.commands if c != "data"])
def test_help_says_of_an_output_what_an_early_end_leaves(command: str) -> None:
    """What can be resumed is not written at once; a list of files, each line or file as it is done."""
    options = {name: p for p in COMMAND.commands[command].params for name in p.opts}
    output = options.get("--output")
    if output is not None and output.required:
        assert ("--resume goes on" in output.help) == ("--resume" in options)
    if "--resume" in options:
        assert "not at all" not in output.help


@pytest.mark.parametrize("arguments", [("--help",), ("pretrain", "--help"), ("evaluate", "--help")])
def test_help_does_not_import_torch(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        "from mhr_cli.main import app\n"
        f"sys.argv = ['mhr', *{arguments!r}]\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code\n"
        "loaded = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_says_which_ops_are_native() -> None:
    shown = succeed("--version").stdout
    assert f"mhr {mhr.__version__}" in shown
    for name, devices in native_ops().items():
        assert (f"{name} ({', '.join(devices)})" in shown) == bool(devices)


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "mhr_cli", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage: mhr" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_a_terminal_lacks_are_shown_as_escapes(encoding: str, tmp_path: Path) -> None:
    rows = [{"task": "日本語 😀", "input": f"é {i}", "targets": str(i)} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "mhr_cli", "data", "check", str(tmp_path / "rows.jsonl")]
    env = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "120"}
    table = subprocess.run(command, capture_output=True, env=env, check=True).stdout.decode(encoding)
    assert ("日本語" if encoding == "utf-8" else r"\u65e5\u672c\u8a9e \U0001f600") in table
    told = subprocess.run([*command, "--json"], capture_output=True, env=env, check=True).stdout.decode(encoding)
    assert "日本語 😀" in str(json.loads(told))


def test_usage_errors_exit_with_2_and_name_the_flag() -> None:
    result = invoke("pretrain", "--output", "x", "--rnak", "4")
    assert result.exit_code == 2
    assert "--rnak" in result.stderr
    assert "--rank" in result.stderr
    assert result.stdout == ""
    assert "Missing option '--output'" in refuse("pretrain")
    assert "No such command 'pretrian'" in refuse("pretrian")
    assert "--verison" in refuse("--verison")


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (ConfigError("rank is 0,\nexpected more"), 2, "error: rank is 0, expected more"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/full/run"),
            2,
            "error: /full/run: No space left on device; free",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            2,
            "error: /root/x: Permission denied; change its",
        ),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_faults_become_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, line: str
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise raised

    monkeypatch.setattr("mhr.training.pretraining.pretrain", fail)
    monkeypatch.setattr(sys, "argv", ["mhr", "pretrain", "--output", "a b", "--overwrite"])
    result = invoke("pretrain", "--output", "a b", "--overwrite")
    assert result.exit_code == code
    assert result.stderr.startswith(line)
    if code == 130:
        assert result.stderr.splitlines()[1] == "Go on with: mhr pretrain --output 'a b' --resume"
    else:
        assert result.stderr.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mhr.training.pretraining.pretrain", fail)
    with pytest.raises(ZeroDivisionError):
        invoke("pretrain", "--output", "unused")


ALL = [(name,) for name in COMMAND.commands if name != "data"] + [("data", "check")]


def command_called(command: tuple[str, ...]) -> Any:
    return functools.reduce(lambda found, name: found.commands[name], command, COMMAND)


def parameters_of(command: tuple[str, ...]) -> list[Any]:
    """Arguments and options of a command."""
    return command_called(command).params


def flags_of(command: tuple[str, ...]) -> set[str]:
    """The options of a command."""
    return {flag for p in parameters_of(command) for flag in p.opts if flag.startswith("--")}


def takes_by_set(command: tuple[str, ...], name: str) -> bool:
    """Whether the help of a command's `--set` says that it takes a setting."""
    text = next(p.help for p in parameters_of(command) if "--set" in p.opts)
    return not {name, f"{name.partition('.')[0]}.*"}.isdisjoint(re.findall(r"`(.+?)`", text))


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_help_fits_a_screen_and_help_all_has_the_rest(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 100)
    short = [line for line in succeed(*command, "--help").stdout.splitlines() if line.strip()]
    assert len(short) <= 40
    assert any(f"mhr {' '.join(command)} " in line for line in short), "an example"
    full = succeed(*command, "--help-all").stdout
    found = command_called(command)
    for parameter in found.params:
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in full
    if found.common:
        assert set(found.common) <= {name for p in found.params for name in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("command", [name for name in ALL if "--set" in flags_of(name)], ids=" ".join)
def test_help_all_lists_every_setting_that_the_command_takes(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its option, or by the name that --set takes."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 100)
    words = set(re.split(r"[\s│,/]+", succeed(*command, "--help-all").stdout))
    for name, (_, known) in all_settings().items():
        if takes_by_set(command, name):
            assert words & {name, *flags_of(command).intersection([*known.flag[:1], *known.switches])}, name


def test_pretrain_takes_every_setting() -> None:
    """So that its help lists all; those outside sections that `--set` does not take have options."""
    flags = flags_of(("pretrain",))
    for name, (_, known) in all_settings().items():
        assert takes_by_set(("pretrain",), name) or flags & {*known.flag, *known.switches} or name == "continue_from"


def test_without_arguments_the_tour_is_shown_and_its_commands_parse() -> None:
    shown = succeed().stdout
    lines = [line.strip() for line in shown.splitlines() if line.startswith("  mhr ")]
    assert [line.split()[1] for line in lines] == ["pretrain", "adapt", "evaluate", "merge", "inspect"]
    tour = [re.split(r" {3,}", line)[0] for line in lines]
    for line in tour:
        parse(shlex.split(line)[1:])
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    assert "\n".join(tour) in readme, "the tour that tests/test_readme.py walks"


def test_examples_name_tasks_that_there_are() -> None:
    """What an example asks of a run of the demo preset, or of builtin:skills, is a task of that collection."""
    known = load_tasks("builtin:skills", max_train=1, limit_test=1)
    shown = [line for name in COMMANDS for line in str(COMMAND.commands[name].epilog).splitlines()]
    named = [
        name
        for line in shown
        if "runs/mhr" in line or "builtin:skills" in line
        for names in re.findall(r"--task (\S+)", line)
        for name in names.split(",")
    ]
    assert len(named) >= 5
    assert set(named) <= set(known)


def test_flags_are_those_of_the_settings_with_their_ranges_and_defaults() -> None:
    """A setting with a flag reaches the command line by its field alone: flag, help, conversion, error."""
    command = COMMAND.commands["pretrain"]
    options = {name: p for p in command.params for name in p.opts}
    for name, (hint, known) in all_settings().items():
        if not known.flag or name.startswith("adapt.") or (name.startswith("data.") and name != "data.template"):
            continue
        option = options[known.flag[0]]
        assert option.help.startswith(known.doc), name
        assert tuple(option.opts) == known.flag or str(hint) == "<class 'bool'>"
        if isinstance(known.default, (int, float, str)) and known.default is not False:
            assert f"(default {known.default})" in option.help
        if known.range:
            line = refuse("pretrain", "--output", "never", known.flag[0], "-1e300")
            assert line.startswith(f"error: {known.flag[0]}: {name} is ")
            assert ("integer" if "int" in str(hint) else "number") in line
