"""Bad checkpoints and output folders, and trainings that fail, end to end: one clear line on stderr, exit code 2, nothing written, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mhr.backbones.load import BUILTIN
from mhr.runs.checkpoints import newest_complete
from tests.cli.running import SMALL, invoke, last_line, refuse, spawn, succeed

# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_truncated_adapter(damaged: Path, output: Path) -> None:
    file = damaged / "adapter" / "mhr_adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for command in (("evaluate", damaged), ("merge", damaged, "--output", output)):
        line = refuse(*command)
        assert str(file) in line
        assert "truncated" in line


def test_a_checkpoint_of_another_base_model(run: Path, tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer, T5ForConditionalGeneration

    from mhr.backbones import load_backbone

    model, _ = load_backbone("builtin:t5-tiny")
    other = T5ForConditionalGeneration(model.config)
    other.save_pretrained(tmp_path / "other")
    ByT5Tokenizer().save_pretrained(tmp_path / "other")
    line = refuse("evaluate", run, "--model", tmp_path / "other")
    assert "belongs to another base model (builtin:t5-tiny)" in line


def test_a_folder_that_is_no_run(output: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    for command in (
        ("evaluate", tmp_path / "photos", "--tasks", "builtin:skills"),
        ("adapt", tmp_path / "photos", "--output", output),
        ("merge", tmp_path / "photos", "--output", output),
        ("inspect", tmp_path / "photos"),
    ):
        assert str(tmp_path / "photos") in refuse(*command)


# ---- output ----------------------------------------------------------------------------------------------------------


def test_an_output_folder_that_is_not_empty(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("keep me")
    for command in (
        ("pretrain", *SMALL, "--output", tmp_path / "mine"),
        ("adapt", run, "--task", "rev-upper", "--output", tmp_path / "mine"),
        ("merge", run, "--output", tmp_path / "mine"),
        ("evaluate", run, "--output", tmp_path / "mine"),
    ):
        assert "is not empty" in refuse(*command)
        # Nothing says that this is an output of ours, so --overwrite does not touch it either.
        assert "thesis.tex" in refuse(*command, "--overwrite")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "keep me"


def test_overwrite_spares_what_the_command_reads(run: Path, rows: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(run, tmp_path / "run")
    model = shutil.copytree(BUILTIN["builtin:t5-tiny"], tmp_path / "model")
    (model / "run.json").write_text("{}")
    # A bank whose base model is a folder, and an output folder with the tasks in it.
    succeed("pretrain", *SMALL, "--steps", "1", "--model", model, "--output", tmp_path / "of-folder")
    tasks = tmp_path / "out" / "rows.jsonl"
    tasks.parent.mkdir()
    shutil.copy(rows, tasks)
    (tmp_path / "out" / "run.json").write_text("{}")
    for held, command in (
        (model, ("pretrain", *SMALL, "--model", model, "--output", model)),
        (tasks, ("pretrain", *SMALL, "--tasks", tasks, "--output", tmp_path / "out")),
        (mine, ("adapt", mine, "--task", "rev-upper", "--output", mine)),
        (tasks, ("adapt", mine, "--tasks", tasks, "--output", tmp_path / "out")),
        (model, ("adapt", tmp_path / "of-folder", "--task", "rev-upper", "--output", model)),
        (mine, ("sweep", mine, "--task", "rev-upper", "--output", mine)),
        (mine, ("merge", mine, "--output", mine)),
        (model, ("merge", tmp_path / "of-folder", "--output", model)),
    ):
        before = sorted(p for p in tmp_path.rglob("*"))
        assert f"holds the input {held}" in refuse(*command, "--overwrite")
        assert sorted(p for p in tmp_path.rglob("*")) == before


def test_replacing_and_going_on_at_once(run: Path, output: Path) -> None:
    for command in (("pretrain", *SMALL), ("adapt", run), ("sweep", run), ("demo",)):
        line = refuse(*command, "--output", output, "--resume", "--overwrite")
        assert "--overwrite and --resume are both given" in line


def test_overwrite_replaces_an_earlier_output(run: Path, tmp_path: Path) -> None:
    succeed("merge", run, "--output", tmp_path / "mu")
    assert "is not empty" in refuse("merge", run, "--output", tmp_path / "mu")
    succeed("merge", run, "--method", "task", "--task", "asc-box", "--output", tmp_path / "mu", "--overwrite")


def _few_bytes() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options for a process that cannot write 100 kB: a tiny file system, or where none can be mounted, a limit."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield {} if mounted else {"preexec_fn": _few_bytes}
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(run: Path, tmp_path: Path, full_disk: dict[str, Any]) -> None:
    processes = {
        name: spawn(*command, "--output", tmp_path / "disk" / name, **full_disk)
        for name, command in {
            "run": ("pretrain", *SMALL, "--rank", "32", "--steps", "1"),
            "model": ("merge", run, "--to", "model"),
        }.items()
    }
    for name, process in processes.items():
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 2, stderr
        assert sum(line.startswith("error: ") for line in stderr.splitlines()) == 1
        assert last_line(stderr).startswith("error: cannot write ")
        assert str(tmp_path / "disk" / name) in last_line(stderr)
        assert "Traceback" not in stderr
    assert not (tmp_path / "disk" / "model").exists()
    assert not list((tmp_path / "disk" / "run").rglob("*.tmp"))
    assert not (tmp_path / "disk" / "run" / "adapter").exists()


def test_a_folder_without_write_permission(run: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        locked = Path("/proc")  # where not even root can make a folder
    else:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
    assert f"cannot write {locked}" in refuse("merge", run, "--output", locked / "merged")


# ---- training --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_names_the_step_and_the_tasks(tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = invoke("pretrain", *SMALL, "--steps", "20", "--lr", "1e30", "--output", output)
    assert result.exit_code == 2
    line = last_line(result.stderr)
    assert line.startswith("error: the loss is nan at step ")
    tasks = json.loads((output / "run.json").read_text())["tasks"]
    assert any(repr(task) in line for task in tasks)
    assert json.loads((output / "run.json").read_text())["status"] == "failed"


def test_control_c_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = (*SMALL, "--steps", "15", "--set", "train.log_every=1", "--output", output)
    process = spawn("pretrain", *settings)
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert last_line(stderr).startswith("Go on with: mhr pretrain ")
    assert last_line(stderr).endswith(" --resume")
    stopped = newest_complete(output / "checkpoints")[0]
    assert stopped is not None
    result = succeed("pretrain", "--output", output, "--resume", "--json")
    info = json.loads(result.stdout)
    assert info["status"] == "done"
    assert info["resumed_from"] == stopped.name
    assert (output / "adapter" / "mhr_config.json").is_file()
