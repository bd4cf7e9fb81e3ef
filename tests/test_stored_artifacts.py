"""What earlier releases wrote is read, computes the same, resumes, and is trained again to the same losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForSeq2SeqLM

import mhr.evaluation
from tests.cli.running import refuse, succeed

FIRST = Path(__file__).parent / "artifacts" / "v0.1.0"
SCORES: dict[str, list[list[float]]] = json.loads((FIRST / "scores.json").read_text())
RUNS = sorted(path.name for path in (FIRST / "runs").iterdir())
FINISHED = [name for name in RUNS if name != "interrupted-t5"]


def place(name: str) -> Path:
    """The folder, relative to that of the release, of what `scores.json` calls `name`."""
    kind, _, rest = name.partition("-")
    if kind == "adapted":
        return Path("adapted", rest, "third", "13")
    return {"merged": Path("merged", rest), "loop": Path("loop")}.get(kind, Path("runs", name))


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the first release wrote, as the current folder."""
    folder = tmp_path / "v0.1.0"
    shutil.copytree(FIRST, folder)
    monkeypatch.chdir(folder)
    return folder


def test_every_stored_run_has_scores() -> None:
    assert set(FINISHED) <= set(SCORES)
    assert {f"merged-{path.name}" for path in (FIRST / "merged").iterdir()} <= set(SCORES)
    assert len(SCORES) == len(FINISHED) + 3 + 6 + 1


@pytest.mark.parametrize("name", sorted(SCORES))
def test_scores_are_those_of_the_release(name: str, release: Path) -> None:
    extra = ("--tasks", "tasks.jsonl") if name.startswith(("merged", "loop")) else ()
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


@pytest.mark.parametrize("name", ["peft-lora", "peft-ia3", "peft-average"])
def test_peft_reads_a_folder_of_the_release_as_this_library_does(name: str, release: Path) -> None:
    base = AutoModelForSeq2SeqLM.from_pretrained("bases/t5")
    ids = torch.arange(2, 20).view(2, 9)
    with torch.no_grad():
        bare = base(input_ids=ids, decoder_input_ids=ids).logits
        theirs = peft.PeftModel.from_pretrained(base, f"merged/{name}")(input_ids=ids, decoder_input_ids=ids).logits
        ours = mhr.evaluation.load_model(f"merged/{name}").model(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (theirs - bare).abs().max() > 1e-4


def test_a_sweep_of_the_release_is_gone_on_with(release: Path) -> None:
    """What it has done stands, with its scores."""
    file = Path("sweep/sweep.json")
    file.write_text(
        file.read_text().replace('"runs/mhr-t5"', json.dumps(str(release / "runs" / "mhr-t5")))
    )  # it keeps whole paths
    before = [json.loads(line) for line in Path("sweep/results.jsonl").read_text().splitlines()]
    stamps = {path: path.stat().st_mtime_ns for path in Path("sweep/units").rglob("*.safetensors")}
    asked = ("--task", "third", "--seeds", "13", "--shots", "8", "--steps", "3", "--workers", "1", "--json")
    found = json.loads(
        succeed("sweep", "runs/mhr-t5", "--modes", "mhr,z", *asked, "--output", "sweep", "--resume").stdout
    )
    assert {path: path.stat().st_mtime_ns for path in Path("sweep/units").rglob("*.safetensors")} == stamps
    assert len(stamps) == len(before) == 2
    assert found["rows"] == before


def test_a_run_of_the_release_is_merged_inspected_and_reported(release: Path) -> None:
    succeed("merge", "runs/mhr-t5", "--method", "task", "--task", "even", "--output", "merged-again")
    before, again = (
        safetensors.torch.load_file(f / "mhr_adapter.safetensors")
        for f in (FIRST / "merged/mhr", release / "merged-again")
    )
    assert before.keys() == again.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(again[key], tensor, rtol=1e-5, atol=1e-7, msg=key)
    assert "even" in succeed("inspect", "runs/mhr-t5").stdout
    succeed("report", "runs/mhr-t5", "runs/poly-llama", "adapted/mhr", "sweep", "--output", "page")


def test_a_checkpoint_of_a_format_to_come_is_refused_with_what_to_do(release: Path) -> None:
    file = release / "loop" / "mhr_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    said = refuse("evaluate", "loop", "--tasks", "tasks.jsonl")
    assert "99" in said
    assert "mhr_config.json" in said
