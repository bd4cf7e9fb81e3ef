"""What earlier releases wrote is read, computes the same, resumes, and is trained again to the same losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.cli.running import succeed

FIRST = Path(__file__).parent / "artifacts" / "v0.1.0"
SCORES: dict[str, list[list[float]]] = json.loads((FIRST / "scores.json").read_text())
RUNS = sorted(path.name for path in (FIRST / "runs").iterdir())
FINISHED = [name for name in RUNS if name != "interrupted-t5"]


def place(name: str) -> Path:
    """The folder, relative to that of the release, of what `scores.json` calls `name`."""
    kind, _, rest = name.partition("-")
    if kind == "adapted":
        return Path("adapted", rest, "third", "13")
    return Path("merged", rest) if kind == "merged" else Path("runs", name)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the first release wrote, as the current folder."""
    folder = tmp_path / "v0.1.0"
    shutil.copytree(FIRST, folder)
    monkeypatch.chdir(folder)
    return folder


def test_every_stored_run_has_scores() -> None:
    assert set(FINISHED) <= set(SCORES)
    assert len(SCORES) == len(FINISHED) + 3 + 4


@pytest.mark.parametrize("name", sorted(SCORES))
def test_scores_are_those_of_the_release(name: str, release: Path) -> None:
    extra = ("--tasks", "tasks.jsonl") if name.startswith("merged") else ()
    succeed("evaluate", place(name), *extra, "--output", "scored")
    rows = [json.loads(line) for line in (release / "scored" / "predictions.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: int(row["id"].partition(":")[2]))  # examples are drawn in an order of their own
    found = torch.tensor([row["scores"] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor(SCORES[name], dtype=torch.float64), rtol=1e-5, atol=1e-5)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", FINISHED)
def test_the_same_settings_train_to_the_same_losses(name: str, release: Path) -> None:
    """A change of the code that computes the same shows the same losses, step by step."""
    head = ("--head", "rank") if name.endswith("bert") else ()  # as encoders of that release had no other
    succeed("pretrain", "--config", Path("runs", name, "config.yaml"), *head, "--output", "again")
    assert losses(release / "again") == pytest.approx(losses(release / "runs" / name), rel=1e-5)
    assert len(losses(release / "again")) == 4


def test_an_interrupted_run_of_the_release_goes_on_to_the_same_adapter(release: Path) -> None:
    run = release / "runs" / "interrupted-t5"
    succeed("pretrain", "--config", run / "config.yaml", "--output", run, "--resume")
    resumed, whole = (
        safetensors.torch.load_file(release / "runs" / name / "adapter" / "mhr_adapter.safetensors")
        for name in ("interrupted-t5", "mhr-t5")
    )
    assert resumed.keys() == whole.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(resumed[key], tensor, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("mode", ["mhr", "z", "mu"])
def test_a_run_of_the_release_is_adapted_to_the_same_adapter(mode: str, release: Path) -> None:
    succeed("adapt", "runs/mhr-t5", "--task", "third", "--mode", mode, "--output", "again")
    again, before = (
        safetensors.torch.load_file(release / folder / "third" / "13" / "adapter" / "mhr_adapter.safetensors")
        for folder in ("again", f"adapted/{mode}")
    )
    assert again.keys() == before.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(again[key], tensor, rtol=1e-4, atol=1e-6, msg=key)
