"""The study of the paper's claims: its questions, its plan, its trials, and a small run from training to the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mhr.analysis.verdicts import Question
from mhr.data import load_tasks
from mhr.report.sources import read_sources
from mhr_benchmarks.studies import paper
from mhr_benchmarks.studies.choices import frozen
from mhr_benchmarks.studies.paper import choose, do, plan_of_trials
from mhr_benchmarks.studies.paper_claims import CLAIMS, Claim, answers
from mhr_benchmarks.studies.paper_page import publish
from mhr_benchmarks.studies.paper_plan import QUICK, RANK, SKILLS, VARIANTS, Plan, Unit, suite, units

TASKS = [(f"t{i}", seed) for i in range(6) for seed in range(8)]


def values(mean: float) -> dict[tuple[str, int], float]:
    return {(task, seed): mean + 0.001 * (seed % 3) for task, seed in TASKS}


def test_a_claim_is_as_sure_as_what_it_depends_on() -> None:
    found = {
        "mhr mhr": values(0.9),
        "poly mhr": dict.fromkeys(TASKS, 0.8),
        "wide lora": dict.fromkeys(TASKS, 0.7),
        "lora lora": dict.fromkeys(TASKS, 0.85),
    }
    second = answers(lambda name: found.get(name, {}))[1]
    assert second.verdict == "supported"
    assert [finding.verdict for finding in second.beside] == ["not supported", "supported"]
    others = [answer for answer in answers(lambda name: found.get(name, {})) if answer.claim.number != 2]
    assert {answer.verdict for answer in others} == {""}  # nothing of them was run
    found["lora lora"] = dict.fromkeys(TASKS, 0.95)
    assert answers(lambda name: found.get(name, {}))[1].verdict == "not supported"
    found["lora lora"] = {(task, seed): 0.9 + 0.2 * (seed % 2) - 0.1 for task, seed in TASKS}
    assert answers(lambda name: found.get(name, {}))[1].verdict == "undecided"


def test_a_lower_loss_is_the_better_one() -> None:
    claim = Claim(1, "", (Question("", "a loss", "b loss", matters=None, lower=True),))
    found = {"a loss": values(0.2), "b loss": dict.fromkeys(TASKS, 0.45)}
    (told,) = answers(lambda name: found[name], (claim,))
    assert told.verdict == "supported"
    assert told.findings[0].paired.difference > 0


def test_every_question_names_what_the_plan_makes() -> None:
    known = set()
    for variant in VARIANTS:
        rows = [*variant.modes, "zero-shot", "loss", "loss at budget", *["further zero-shot"] * bool(variant.continued)]
        known |= {f"{variant.name} {row}" for row in rows}
    asked = [question for claim in CLAIMS for question in (*claim.questions, *claim.beside)]
    assert len(asked) > 10
    assert {side for question in asked for side in (question.a, question.b)} <= known
    assert len({question for claim in CLAIMS for question in claim.questions}) == 7


def test_banks_and_the_wide_lora_hold_equal_numbers() -> None:
    settings = {variant.name: variant.settings for variant in VARIANTS}
    assert settings["wide"]["rank"] == RANK * SKILLS == settings["mhr"]["rank"] * settings["mhr"]["n_skills"]
    assert {own["alpha"] for own in settings.values()} == {float(RANK)}


def test_validation_tasks_are_trained_on_by_no_run_and_judge_no_claim(tmp_path: Path) -> None:
    plan = replace(Plan(), test=20, seen=2)
    tasks = suite(plan, tmp_path)
    assert (len(tasks.training), len(tasks.validation), len(tasks.test)) == (59, 12, 15)
    assert not set(tasks.training) & set(tasks.validation)
    read = load_tasks(tasks.file)
    assert set(read.training()) == set(tasks.training)
    assert set(read.held_out()) == {*tasks.validation, *tasks.test}
    assert len({read[name].category for name in tasks.validation}) == 3
    assert len(read[tasks.test[0]].test) == 20
    chosen = {v.name: {"lr": 0.1, "modes": dict.fromkeys(v.modes, 0.2)} for v in VARIANTS}
    made = units(plan, tasks, chosen)
    assert len({unit.folder for unit in made}) == len(made) == 16 * 4 + 8 * 2
    assert [unit.seed for unit in made[:6]] == [1] * 6


def test_trials_choose_for_each_variant_and_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of pretraining by the best rate of the first mode, those of other modes from that run."""
    plan, tasks, asked = Plan(seeds=(1,)), suite(QUICK, tmp_path), []

    def made_up(pieces: list[Unit], output: Path, workers: int) -> None:
        for unit in pieces:
            asked.append((unit.folder, *unit.rates))
            scores = {
                f"{mode} {rate:g}": {
                    task: {str(unit.seed): {"score": 0.5 + 0.1 * (unit.lr == 0.003) - abs(rate - 0.003)}}
                    for task in tasks.validation
                }
                for mode, rates in unit.rates.items()
                for rate in rates
            }
            (output / unit.folder).mkdir(parents=True, exist_ok=True)
            (output / unit.folder / "state.json").write_text(json.dumps({"scores": scores}))

    monkeypatch.setattr(paper, "run_all", made_up)
    choose(plan, tasks, tmp_path, tmp_path / "paper.json", 1)
    assert asked[-1] == ("trials/mhr-0.003", "mhr", "z", "mu")
    assert len(asked) == 6 * 3 + 1
    methods = frozen(tmp_path / "paper.json", plan_of_trials(plan, tasks), committed=False)
    assert methods is not None
    assert {name: own["lr"] for name, own in methods.items()} == {v.name: 0.003 for v in VARIANTS}
    assert methods["mhr"]["modes"] == {"mhr": 0.003, "z": 0.1, "mu": 0.003}
    assert set(methods["lora"]["trials"]) == {"0.001", "0.003", "0.01"}
    # More test seeds are no other plan.
    assert frozen(tmp_path / "paper.json", plan_of_trials(replace(plan, seeds=(1, 2)), tasks), committed=False)


@pytest.mark.slow
def test_a_small_study_from_training_to_its_page(tmp_path: Path) -> None:
    tasks = suite(QUICK, tmp_path)
    chosen: dict[str, Any] = {
        v.name: {
            "lr": 3e-3,
            "modes": dict.fromkeys(v.modes, 0.1),
            "trials": {"0.003": {m: {"0.1": 0.5} for m in v.modes}},
        }
        for v in VARIANTS
    }
    planned = units(replace(QUICK, seeds=(1,)), tasks, chosen)
    made = [unit for unit in planned if unit.variant.name in ("lora", "mhr")]
    for unit in made:
        do(unit, tmp_path)
        kept = (tmp_path / unit.folder / "state.json").read_text()
        do(unit, tmp_path)
        assert (tmp_path / unit.folder / "state.json").read_text() == kept  # nothing is done twice
    told = publish(QUICK, planned, chosen, tmp_path, tmp_path / "results", tmp_path / "docs", "the command")
    assert "Claim 4: undecided" in told
    record = json.loads((tmp_path / "results" / "study_suite.json").read_text())
    assert set(record["scores"]) == {
        "lora lora", "mhr mhr", "mhr z", "mhr mu", "lora zero-shot", "mhr zero-shot", "lora further zero-shot",
        "mhr further zero-shot",
    }  # fmt: skip
    assert record["losses"]["mhr-1"].keys() == {"2", "4"}
    assert len(record["losses"]["mhr-1"]["4"]) == QUICK.n_training
    page = (tmp_path / "docs" / "study.md").read_text()
    for line in (
        "`the command`",
        "**Not finished: 2 of 6",
        "### Questions",
        "| MHR-z |",
        "### What it cost",
        "### Trials",
    ):
        assert line in page
    report = read_sources([tmp_path / "results" / "study_suite.json"])
    assert report.groups["mhr z"].trained == record["runs"]["mhr z"]["parameters"]["trained"]
