"""The AdaMix study: its plan and trials, a small run from training to the page, and the page of what is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mhr_benchmarks.studies import adamix
from mhr_benchmarks.studies.adamix import choose, do, make_setting, plan_of_trials, rates_of
from mhr_benchmarks.studies.adamix_claims import CLAIMS
from mhr_benchmarks.studies.adamix_page import publish
from mhr_benchmarks.studies.adamix_plan import LONG, METHODS, TEST, TRIAL, Plan, Setting, Unit
from mhr_benchmarks.studies.choices import frozen

TASKS = ("task1_alpha_classification", "task2_beta")
PLAN = Plan(
    trial_tasks=("task9_trial",), tasks=TASKS, long_tasks=TASKS[1:], seeds=(1, 2, 3), n_train=8, n_validation=2, trial_steps=1,
    steps=2, long_steps=3, batch=4, precision="no",
)  # fmt: skip
CHOICES = {"methods": {m.name: {"lr": m.rates[1], "trials": {f"{lr:g}": lr for lr in m.rates}} for m in METHODS}}


@pytest.fixture
def setting_of(tmp_path: Path, backbone: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Setting]:
    """A setting whose tasks have so many examples in each split of their source."""
    monkeypatch.setattr(adamix, "encoder", lambda: backbone("bert"))

    def make(train: int = 10, test: int = 6) -> Setting:
        rows = [
            {"task": task, "input": f"the {i} of {task}", "targets": ["no", "yes"][i % 2], "choices": ["no", "yes"], "split": split}
            for task in (*PLAN.trial_tasks, *TASKS)
            for split, first, last in (("train", 0, train), ("test", train, train + test))
            for i in range(first, last)
        ]  # fmt: skip
        source = tmp_path / "source.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return make_setting(PLAN, str(source), tmp_path / "study")

    return make


@pytest.fixture
def setting(setting_of: Callable[..., Setting]) -> Setting:
    return setting_of()


def rates() -> dict[str, float]:
    return rates_of(CHOICES)


def test_tasks_of_the_trials_are_not_reported_and_questions_are_about_methods() -> None:
    plan = Plan()
    assert not set(plan.trial_tasks) & set(plan.tasks)
    assert set(plan.long_tasks) <= set(plan.tasks)
    assert (len(plan.tasks), len(plan.trial_tasks), len(plan.long_tasks)) == (12, 3, 3)
    names = {method.name for method in METHODS}
    asked = [question for claim in CLAIMS for question in (*claim.questions, *claim.beside)]
    assert {side for question in asked for side in (question.a, question.b)} <= names
    assert {len(method.rates) for method in METHODS} == {3}


def test_every_method_has_as_many_trials_and_its_runs(setting: Setting) -> None:
    tried = setting.trials()
    assert len({unit.folder for unit in tried}) == len(tried) == 3 * len(METHODS) * len(PLAN.trial_tasks)
    assert {unit.steps for unit in tried} == {1, 2}  # of the bottleneck with twice the steps
    planned = setting.units(rates())
    assert len({unit.folder for unit in planned}) == len(planned)
    of = {method.name: [unit for unit in planned if unit.method.name == method.name] for method in METHODS}
    assert {unit.seed for unit in of["LoRA"]} == {1, 2, 3}
    assert {unit.seed for unit in of["full fine-tuning"]} == {1}
    long = [unit for unit in planned if unit.kind == LONG]
    assert {(unit.task, unit.seed, unit.steps) for unit in long} == {(TASKS[1], 1, 3)}
    assert {unit.seed for unit in setting.units(rates(), seeds=1)} == {1}


def test_trials_choose_the_rate_with_the_best_mean(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_all(do: object, pieces: list[Unit], output: Path, workers: int) -> None:
        for unit in pieces:
            assert unit.kind == TRIAL
            score = {"score": 0.5 - abs(unit.lr - unit.method.rates[1])}
            (output / unit.folder).mkdir(parents=True)
            state = {"scores": {"average": {unit.task: {str(unit.seed): score}}}}
            (output / unit.folder / "state.json").write_text(json.dumps(state))

    monkeypatch.setattr(adamix, "run_all", run_all)
    choose(setting, tmp_path / "study", tmp_path / "adamix.json", 1)
    decided = frozen(tmp_path / "adamix.json", plan_of_trials(PLAN), committed=False)
    assert decided is not None
    assert rates_of(decided) == rates()
    # More test seeds and tasks are no other plan.
    more = replace(PLAN, seeds=(1, 2, 3, 4), steps=100)
    assert frozen(tmp_path / "adamix.json", plan_of_trials(more), committed=False)


def test_a_run_is_scored_once_and_only_as_it_can_be(setting: Setting, tmp_path: Path) -> None:
    planned = [unit for unit in setting.units(rates(), seeds=1) if unit.task == TASKS[1]]
    for name, kind, ways in (
        ("AdaMix, up shared", TEST, {"average", "per sentence", "ensemble of 4"}),
        ("AdaMix, up shared", LONG, {"average"}),
        ("full fine-tuning", TEST, {"average"}),
    ):
        (unit,) = [unit for unit in planned if unit.method.name == name and unit.kind == kind]
        do(unit, tmp_path)
        kept = (tmp_path / unit.folder / "state.json").read_text()
        do(unit, tmp_path)
        assert (tmp_path / unit.folder / "state.json").read_text() == kept
        scores = json.loads(kept)["scores"]
        assert set(scores) == ways
        assert scores["average"][TASKS[1]]["1"]["n"] == 6  # of 16, what neither trains nor validates


def test_a_trial_is_judged_on_a_hundred_examples_and_a_run_on_all(
    setting_of: Callable[..., Setting], tmp_path: Path
) -> None:
    setting = setting_of(train=20, test=100)
    trial, run = setting.trials()[0], setting.units(rates(), seeds=1)[0]
    for unit, judged in ((trial, 100), (run, 110)):  # 8 are trained on, 2 validate
        do(unit, tmp_path)
        scores = json.loads((tmp_path / unit.folder / "state.json").read_text())["scores"]
        assert scores["average"][unit.task][str(unit.seed)]["n"] == judged


def test_the_page_of_what_is_done(setting: Setting, tmp_path: Path) -> None:
    accuracy = {
        "one bottleneck": {1: (0.9, 0.5), 2: (0.7, 0.5)},
        "AdaMix, up shared": {
            1: (0.8, 0.6),
            2: (0.8, 0.6),
            3: (0.1, None),
        },  # of the third seed one task is still to come
        "AdaMix, nothing shared": {1: (0.6, 0.6)},
    }
    planned = setting.units(rates())
    for unit in planned:
        score = dict(zip(TASKS, accuracy.get(unit.method.name, {}).get(unit.seed, (None, None)), strict=True))[
            unit.task
        ]
        if unit.kind == LONG:
            score = 0.75
        if score is None:
            continue
        own: dict[str, Any] = {"score": score, "n": 235, "majority": 0.5}
        ways = ("average", "per sentence") if unit.method.draws and unit.kind == TEST else ("average",)
        state = {
            "scores": {way: {unit.task: {str(unit.seed): own}} for way in ways},
            "runs": {"run": {"parameters": {"trained": 4321 if unit.method.draws else 1234}}},
            "cpu_seconds": {"pretrain": 60.0},
            "done": {},
        }
        (tmp_path / unit.folder).mkdir(parents=True)
        (tmp_path / unit.folder / "state.json").write_text(json.dumps(state))
    page = publish(PLAN, planned, CHOICES, tmp_path, tmp_path / "results", "the command")
    assert page == (tmp_path / "results" / "adamix.md").read_text()
    for part in (
        "`the command`",
        "235 to 235 test examples",
        "**Not finished: 14 of",
        "14 CPU minutes",
        "| one bottleneck | 2 | 65.0 ± 7.1 |  | 0.002 | 2 | 2 | 1,234 | 1,234 | 60 |",
        "| AdaMix, up shared | 2 | 70.0 ± 0.0 | +5.0 ± 7.1 | 0.002 | 2 | 4 | 4,321 | 1,234 | 60 |",
        "| AdaMix, nothing shared | 1 | 60.0 | -10.0 | 0.002 | 2 | 4 | 4,321 | 1,234 | 60 |",
        "| AdaMix, up shared | per sentence | 70.0 ± 0.0 |",
        "|  | 1 alpha | 2 beta | mean |",
        "| AdaMix, up shared | 80.0 ± 0.0 | 60.0 ± 0.0 | 70.0 ± 0.0 |",
        "### After 3 steps",
        "| AdaMix, nothing shared | 75.0 | 75.0 |",
        "| AdaMix, up shared, above one bottleneck | +5.0 |",
    ):
        assert part in page, part
    assert "| LoRA | 0 |" not in page
    record = json.loads((tmp_path / "results" / "adamix.json").read_text())
    assert record["scores"]["AdaMix, up shared"][TASKS[0]].keys() == {"1", "2", "3"}
    assert publish(PLAN, planned, CHOICES, tmp_path / "none", tmp_path, "").startswith("No method is done")
