"""The demo with a handful of steps: it fills its table, and goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mhr.data import load_tasks
from mhr.demo import METHOD_AND_MODE, TASKS, run_demo
from mhr.errors import ConfigError, MhrError

FEW = ("train.steps=2", "train.batch_size=4", "adapt.steps=1", "adapt.batch_size=4", "adapt.shots=4")


@pytest.mark.slow
def test_the_demo_fills_its_table_and_resumes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    said: list[str] = []
    result = run_demo(tmp_path / "demo", progress=False, overrides=FEW, max_tasks=2, limit=4, say=said.append)
    assert list(result.scores) == list(TASKS[:2])
    assert all(
        list(row) == list(METHOD_AND_MODE) and all(0 <= v <= 1 for v in row.values()) for row in result.scores.values()
    )
    assert result.trained["MHR-z"] < result.trained["MHR-mu"] < result.trained["MHR"]
    assert len(said) == 9
    assert (tmp_path / "demo" / "peft-lora" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "demo" / "plots" / "routing.svg").is_file()
    written = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert written["status"] == "done"
    assert written["scores"] == result.scores
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "demo").rglob("*")}
    again = run_demo(tmp_path / "demo", resume=True, overrides=FEW, max_tasks=2, limit=4, say=said.append)
    assert again == result
    assert len(said) == 9  # nothing was done twice
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "demo").rglob("*")} == files
    with pytest.raises(MhrError, match="other settings"):
        run_demo(tmp_path / "demo", resume=True, overrides=FEW, max_tasks=1, limit=4)
    with pytest.raises(MhrError, match="not empty"):
        run_demo(tmp_path / "demo", progress=False)


@pytest.mark.slow
def test_a_demo_that_was_stopped_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    def stop(*arguments: object, **settings: object) -> None:
        raise Stopped

    few = {"overrides": FEW, "max_tasks": 1, "limit": 2, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr("mhr.demo.merge", stop)
        with pytest.raises(Stopped):
            run_demo(tmp_path / "demo", **few)
    monkeypatch.setattr("mhr.demo.adapt", stop)
    result = run_demo(tmp_path / "demo", resume=True, **few)
    assert list(result.mean) == list(METHOD_AND_MODE)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("adapter.n_skills=4", "n_skills is 4, but shared has 1 skill.*the demo pretrains with method 'lora' too"),
        ("adapter.n_heads=4", "n_heads is 4, but poly has 1 head.*with method 'poly' too"),
        ("adapter.adapter=ia3", "method 'lora' trains 'lora'"),
        ("adapter.share=up", "share"),
        ("data.sampler=none", "sampler is 'none'"),
        ("train.scale_parameter=true", "no effect with train.optimizer"),
        ("adapt.shots=0", "shots is 0"),
        (
            "adapt.full_lr=1e-4",
            "full_lr is 0.0001, but mode 'lora' or 'mhr' or 'z' or 'mu' does not train all",
        ),
        ("adapt.candidates=9", "candidates is 9, but mode 'lora' weighs no LoRAs"),
    ],
)
def test_what_one_of_its_methods_does_not_take_is_refused_before_anything_is_written(
    override: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        run_demo(tmp_path / "demo", progress=False, overrides=[*FEW, override])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "demo").exists()


def test_its_tasks_are_held_out() -> None:
    assert set(TASKS) <= set(load_tasks("builtin:skills", max_train=1, limit_test=1).held_out())
