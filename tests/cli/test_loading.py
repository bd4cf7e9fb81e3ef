"""What every command that loads a base model or reads tasks takes: --trust-remote-code, --model, --on-bad-row."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.backbones.test_foreign import CODE, write
from tests.cli.running import invoke, refuse, succeed
from tests.models import tiny_model

FEW = ("--limit", "2")
SMALL = (
    *("--method", "poly", "--n-skills", "2", "--rank", "2", "--steps", "2", "--targets", "q_proj,v_proj"),
    *("--set", "data.max_input_length=8", "--set", "data.max_target_length=4"),
)


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A base model that needs Python files of its own, and the file that these leave when they run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    mark = tmp_path / "mark"
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    base = write(tiny_model("llama"), tmp_path / "base", model_type="own", auto_map=auto, trust_remote_code=True)
    (base / "own.py").write_text(CODE.format(mark=str(mark)))
    return base, mark


def test_code_of_a_base_runs_in_no_command_without_the_flag(
    own_code: tuple[Path, Path], rows: Path, tmp_path: Path
) -> None:
    base, mark = own_code
    run, trust = tmp_path / "run", "--trust-remote-code"
    pretrain = (
        "pretrain",
        "--model",
        base,
        "--tasks",
        rows,
        "--method",
        "poly",
        "--n-skills",
        "2",
        "--rank",
        "2",
        "--steps",
        "2",
    )
    succeed(*pretrain, *SMALL, trust, "--output", run)
    assert "trust_remote_code: true" in (run / "config.yaml").read_text()
    few = ("--task", "even", "--shots", "4", "--steps", "1", "--seeds", "0", "--batch-size", "2")
    commands = {
        "pretrain": (*pretrain, *SMALL, "--output", tmp_path / "again"),
        "adapt": ("adapt", run, *few, "--mode", "poly", "--output", tmp_path / "adapted"),
        "evaluate": ("evaluate", run, "--task", "even", *FEW),
        "model": ("evaluate", base, "--tasks", rows, "--task", "even", *FEW),
        "merge": ("merge", run, "--evaluate", "--dev-task", "even", *FEW, "--output", tmp_path / "merged"),
        "fold": ("merge", run, "--to", "model", "--output", tmp_path / "folded"),
        "align": ("inspect", run, "--alignment", "--examples", "2"),
        "transfer": ("inspect", run, "--transfer", *FEW),
    }
    for command in commands.values():
        mark.unlink(missing_ok=True)
        assert trust in refuse(*command), command
        assert not mark.exists(), command
    assert trust in refuse("pretrain", "--config", run / "config.yaml", "--output", tmp_path / "from-file")
    for command in commands.values():
        succeed(*command, trust)


@pytest.mark.slow
def test_a_sweep_is_told_of_code_too(own_code: tuple[Path, Path], rows: Path, tmp_path: Path) -> None:
    base, mark = own_code
    run, trust = tmp_path / "run", "--trust-remote-code"
    few = ("--task", "even", "--shots", "4", "--steps", "1", "--seeds", "0", "--batch-size", "2", "--workers", "1")
    succeed(
        *("pretrain", "--model", base, "--tasks", rows),
        *(*SMALL, trust, "--output", run),
    )  # fmt: skip
    mark.unlink()
    sweep = ("sweep", run, "--modes", "poly", *few, *FEW)
    result = invoke(*sweep, "--output", tmp_path / "sweep")
    assert result.exit_code == 2
    assert trust in result.stderr
    assert not mark.exists()
    succeed(*sweep, trust, "--output", tmp_path / "trusted")


def test_a_base_that_moved_is_named_to_every_command(rows: Path, tmp_path: Path) -> None:
    base = write(tiny_model("llama"), tmp_path / "base")
    run, moved = tmp_path / "run", tmp_path / "moved"
    succeed(
        *("pretrain", "--model", base, "--tasks", rows),
        *(*SMALL, "--output", run),
    )  # fmt: skip
    shutil.move(base, moved)
    few = ("--task", "even", "--shots", "4", "--steps", "1", "--seeds", "0", "--batch-size", "2")
    for command in (
        ("adapt", run, *few, "--mode", "poly", "--output", tmp_path / "adapted"),
        ("evaluate", run, "--task", "even", *FEW),
        ("merge", run, "--evaluate", "--dev-task", "even", *FEW, "--output", tmp_path / "merged"),
        ("inspect", run, "--alignment", "--examples", "2"),
        ("inspect", run, "--transfer", *FEW),
    ):
        assert invoke(*command).exit_code == 2, command
        succeed(*command, "--model", moved)


def test_a_faulty_row_is_left_out_by_every_command(run: Path, rows: Path, tmp_path: Path) -> None:
    with rows.open("a") as file:
        file.write('{"task": "even", "input": "no answer"}\n')
    skip = ("--on-bad-row", "skip")
    for command in (
        ("adapt", run, "--tasks", rows, "--task", "even", "--shots", "4", "--steps", "1", "--seeds", "0", "--output", tmp_path / "a"),
        ("evaluate", run, "--tasks", rows, *FEW),
        ("merge", run, "--evaluate", "--tasks", rows, *FEW, "--output", tmp_path / "merged"),
        ("inspect", run, "--transfer", "--tasks", rows, "--task", "even", *FEW),
    ):  # fmt: skip
        assert f"{rows.name}:" in refuse(*command), command
        assert (invoke(*command, *skip).exit_code == 0) or command[0] == "inspect", command
    assert "--on-bad-row" in refuse("merge", run, *skip, "--output", tmp_path / "mu")
