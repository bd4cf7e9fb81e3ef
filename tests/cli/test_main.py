"""The frame of the command line: help, version, torch-free start, exit codes."""

from __future__ import annotations

import errno
import re
import subprocess
import sys

import pytest
from typer.main import get_command

import mhr
from mhr.errors import ConfigError
from mhr.methods import METHODS, MODES
from mhr.ops import native_ops
from mhr.runs.config import load_config
from mhr_cli.main import app
from tests.cli.running import invoke, succeed

COMMANDS = ("pretrain", "adapt", "merge", "evaluate", "benchmark", "inspect", "data", "doctor", "demo")


def test_help_lists_every_command() -> None:
    shown = succeed("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^\W+{command} ", shown, re.MULTILINE), command


@pytest.mark.parametrize("command", [*((c,) for c in COMMANDS), ("data", "check")], ids=" ".join)
def test_help_of_a_command_has_a_line_for_every_flag_and_an_example(command: tuple[str, ...]) -> None:
    shown = succeed(*command, "--help").stdout
    if command != ("data",):
        assert f"mhr {' '.join(command)}" in shown.partition("Examples")[2]
    found = get_command(app)
    for name in command:
        found = found.commands[name]
    for parameter in found.params:
        assert parameter.help, parameter.name


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


def test_usage_errors_exit_with_2_and_name_the_flag() -> None:
    result = invoke("pretrain", "--output", "x", "--rnak", "4")
    assert result.exit_code == 2
    assert "--rnak" in result.stderr
    assert result.stdout == ""


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


def test_defaults_that_help_tells_are_those_of_the_settings() -> None:
    config = load_config()
    command = get_command(app).commands["pretrain"]
    told = {}
    for parameter in command.params:
        default = re.search(r"\(default ([^)]+)\)", parameter.help or "")
        if default:
            told[parameter.name] = default.group(1)
    homes = [config.train, config.adapter, config.data, config]
    assert len(told) >= 10
    for name, text in told.items():
        home = next(h for h in homes if hasattr(h, name))
        assert str(getattr(home, name)) == text, name


def test_help_names_every_method_and_mode() -> None:
    commands = get_command(app).commands
    method = next(p.help for p in commands["pretrain"].params if p.name == "method")
    mode = next(p.help for p in commands["adapt"].params if p.name == "mode")
    for name in METHODS:
        assert re.search(rf"\b{name}\b", method), name
    for name in MODES:
        assert re.search(rf"\b{name}\b", mode), name
