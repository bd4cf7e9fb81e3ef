"""The folder of a run: when it is made, refused, deleted; and what survives a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mhr.errors import CheckpointError, MhrError
from mhr.files import INDEX_FILE, INDEX_FORMAT, OUTPUT_MARKS
from mhr.runs.checkpoints import fault_of, keep_newest, mark_complete, newest_complete
from mhr.runs.config import load_config
from mhr.runs.run import RunFolder


def test_a_run_is_written_and_read_back(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    config = load_config(preset="demo", steps=3)
    run.start(config, kind="pretrain", method="mhr")
    run.log({"step": 1, "loss": 2.5})
    again = RunFolder.open(tmp_path / "run")
    assert again.config() == config
    assert again.status == "running"
    assert again.metrics() == [{"step": 1, "loss": 2.5}]
    assert {"mhr", "torch", "transformers", "python"} <= set(again.info["versions"])
    with pytest.raises(CheckpointError, match="is not done"):
        again.result()


def test_a_kill_at_the_beginning_leaves_a_run_that_can_be_resumed_or_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(preset="demo", steps=3)

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mhr.runs.run.write_text_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(tmp_path / "run").start(config, kind="pretrain")
    assert RunFolder.create(tmp_path / "run", resume=True).config() == config
    assert RunFolder.create(tmp_path / "run", overwrite=True).info == {}


def test_a_folder_in_use_is_refused_and_nothing_in_it_is_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MhrError, match="not empty.*--overwrite"):
        RunFolder.create(tmp_path)
    with pytest.raises(MhrError, match="leaves it alone"):
        RunFolder.create(tmp_path, overwrite=True)
    with pytest.raises(CheckpointError, match="run.json is missing"):
        RunFolder.create(tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_deletes_what_an_earlier_run_left(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.start(load_config())
    (run.checkpoints / "checkpoint-1").mkdir(parents=True)
    RunFolder.create(tmp_path / "run", overwrite=True)
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("mark", [*OUTPUT_MARKS, INDEX_FILE])
@pytest.mark.parametrize("done", range(5))
def test_a_kill_while_a_folder_is_emptied_leaves_one_that_can_be_replaced(
    mark: str, done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", mark, "metrics.jsonl", "a", "z"):
        (folder / name).write_text(json.dumps({"format": INDEX_FORMAT}))
    deleted, unlink = 0, Path.unlink

    def until_killed(self: Path, *args: Any, **kwargs: Any) -> None:
        nonlocal deleted
        if deleted == done:
            raise KeyboardInterrupt
        deleted += 1
        unlink(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", until_killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(folder, overwrite=True)
    assert RunFolder.create(folder, overwrite=True).info == {}


def test_a_missing_run_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        RunFolder.open(tmp_path / "nowhere")
    (tmp_path / "adapt.json").write_text('{"runs": [{"path": "boolq/13"}]}')
    with pytest.raises(CheckpointError, match="boolq/13"):
        RunFolder.open(tmp_path)


def test_a_line_of_metrics_that_a_kill_has_cut_is_left_out(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    for step in (1, 2, 3):
        run.log({"step": step})
    with open(run.metrics_file, "a") as file:
        file.write('{"step": 4, "lo')
    run.forget_after(2)
    assert [record["step"] for record in run.metrics()] == [1, 2]


def test_checkpoints_count_only_when_complete_and_sound(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "tensors").write_bytes(bytes(8))
        mark_complete(folder)
    assert newest_complete(tmp_path) == (tmp_path / "checkpoint-10", [])
    (tmp_path / "checkpoint-10" / "tensors").write_bytes(bytes(7))
    found, skipped = newest_complete(tmp_path)
    assert found == tmp_path / "checkpoint-4"
    assert "checkpoint-10" in skipped[0]
    assert "7 bytes instead of 8" in skipped[0]
    (tmp_path / "checkpoint-4" / "tensors").write_bytes(b"12345678")
    assert fault_of(tmp_path / "checkpoint-4") == "tensors is damaged"
    (tmp_path / "checkpoint-2" / "complete.json").unlink()
    told = r"none of the 3 checkpoints in .* can be used \(checkpoint-10: tensors has 7 bytes instead of 8\): restore"
    with pytest.raises(CheckpointError, match=told):
        newest_complete(tmp_path)
    keep_newest(tmp_path, 1, 10)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-10"]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("newer", [[], [6], [6, 8]])
def test_what_was_just_written_stays_beside_newer_ones_that_are_damaged(
    number: int, newer: list[int], tmp_path: Path
) -> None:
    """A resumed run goes past them, and has fewer steps than they until it comes there."""
    for step in (2, 4, 5, *newer):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "tensors").write_bytes(bytes(8))
        mark_complete(folder)
        if step in newer:
            (folder / "tensors").write_bytes(b"")
    keep_newest(tmp_path, number, 5)
    assert newest_complete(tmp_path)[0] == tmp_path / "checkpoint-5"
    kept = [p for p in tmp_path.iterdir() if fault_of(p) is None]
    assert len(kept) == number
