"""AdaMix from a prompt: a small study from training to its page, and the page of one that is not finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mhr.data import load_tasks
from mhr.runs import RunFolder
from mhr.training import pretrain
from mhr_benchmarks.studies import adamix_plan, adamix_prompts
from mhr_benchmarks.studies.adamix_prompts import METHODS, PROMPT, Plan, Study
from mhr_benchmarks.studies.adamix_prompts_page import page
from mhr_benchmarks.studies.jobs import Job


def test_the_trial_task_is_not_reported_and_tasks_are_those_of_the_other_study() -> None:
    plan, other = Plan(), adamix_plan.Plan()
    assert set(plan.tasks) <= set(other.tasks)
    assert plan.trial_task in other.trial_tasks
    assert plan.trial_task not in plan.tasks
    assert len(plan.rates) == len(plan.tasks) == len(plan.seeds) == plan.shots / 10 == 3


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs are done in this process; the folders of those that were asked for."""
    asked: list[str] = []

    def train(jobs: Sequence[Job[str]], workers: int) -> Iterator[tuple[Job[str], RunFolder, float]]:
        for job in jobs:
            asked.append(job.folder)
            pretrain(job.config, job.folder, resume=True, progress=False)
            yield job, RunFolder.open(job.folder), 1.0

    monkeypatch.setattr(adamix_prompts, "train", train)
    return asked


def test_a_small_study_from_training_to_its_page(
    backbone: Callable[..., str], small_and_quick: None, tmp_path: Path, at_once: list[str]
) -> None:
    rows = [
        {"task": task, "input": f"the {i} of {task}", "targets": ["no", "yes"][i % 2], "choices": ["no", "yes"], "split": split,
         "held_out": task == "asked"}
        for task in ("trial", "asked")
        for split, first, last in (("train", 0, 8), ("test", 8, 12))
        for i in range(first, last)
    ]  # fmt: skip
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = Plan("trial", ("asked",), (13,), rates=(1e-3, 2e-3), shots=4, steps=1, batch=2, max_length=32, limit=2)
    study = Study(backbone("llama"), plan, str(source), tmp_path / "study", 1)
    assert list(study.run()) == [13]
    assert len(at_once) == len(METHODS) * 3
    state = study.stages.state
    assert set(state["scores"]) == {
        "zero-shot", *METHODS, *(f"trial {name} at {rate}" for name in METHODS for rate in ("0.001", "0.002")),
    }  # fmt: skip
    assert state["scores"]["LoRA"]["asked"]["13"]["n"] == 2
    (first,) = [folder for folder in at_once if "runs/LoRA" in folder]
    config = RunFolder.open(first).config()
    read = load_tasks(config.tasks, prompt=config.data.prompt)["asked"]
    assert (len(read.train), len(read.test)) == (4, 2)
    assert {example.input for example in read.test} < {PROMPT.format(input=f"the {i} of asked") for i in range(8, 12)}
    before = json.dumps(state["scores"])
    again = Study(study.model, plan, str(source), tmp_path / "study", 1)
    assert list(again.run()) == [13]
    assert json.dumps(again.stages.state["scores"]) == before
    text = study.stages.publish(tmp_path / "results", "small", "the command", page, prompt=PROMPT, dtype="bfloat16")
    assert "Not finished" not in text
    assert text.count("| AdaMix, up shared |") == 2


def test_the_page_takes_the_seeds_with_which_all_is_done() -> None:
    def scores(**by_seed: float) -> dict[str, Any]:
        return {"task7_a_b": {seed.strip("s"): {"accuracy": score, "n": 100} for seed, score in by_seed.items()}}

    methods = {name: {"trials": {"0.001": 0.5, "0.002": 0.75}, "rate": "0.002", "passes": 1} for name in METHODS}
    methods["AdaMix, up shared"]["passes"] = 2
    record = {
        "command": "the command",
        "backbone": "a decoder",
        "prompt": PROMPT,
        "dtype": "bfloat16",
        "machine": {"cpu": "a CPU", "commit": "abc"},
        "plan": {
            "tasks": ["task7_a_b"], "seeds": [1, 2, 3], "trial_task": "task8_c", "trial_seed": 7, "shots": 30,
            "steps": 100, "batch": 4, "rates": [1e-3, 2e-3],
        },
        "methods": methods,
        "runs": {name: {"parameters": {"trained": 1234}} for name in METHODS},
        "seconds": {f"{name} runs/x/{seed}": 10.0 * seed for name in METHODS for seed in (1, 2)},
        "scores": {name: scores(s1=0.5, s2=0.7) for name in METHODS},
    }  # fmt: skip
    record["scores"] |= {"zero-shot": {"task7_a_b": {"None": {"accuracy": 0.4, "n": 100}}}}
    record["scores"]["one bottleneck"] = scores(s1=0.5, s2=0.7, s3=0.9)  # the third seed has only begun
    text = page(record)
    assert "**Not finished: 2 of 3 seeds are done.**" in text
    assert "| zero-shot | 40.0 | 40.0 | | | | |" in text
    assert "| one bottleneck | 60.0 ± 14.1 | 60.0 ± 14.1 | 0.002 | 100 | 1,234 | 15 |" in text
    assert "| AdaMix, up shared | 60.0 ± 14.1 | 60.0 ± 14.1 | 0.002 | 200 | 1,234 | 15 |" in text
    assert "| LoRA | 50.0 | **75.0** |" in text
