"""The study of the paper's claims: its rule, its plan, and a small run from training to the page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mhr.analysis.verdicts import Question
from mhr.report.sources import read_sources
from mhr_benchmarks.studies.paper import do, main
from mhr_benchmarks.studies.paper_claims import CLAIMS, Claim, answers
from mhr_benchmarks.studies.paper_page import publish
from mhr_benchmarks.studies.paper_plan import suite, units_of

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
    first, *others = answers(lambda name: found.get(name, {}))
    assert first.verdict == "supported"
    assert [finding.verdict for finding in first.beside] == ["not supported", "supported"]
    assert {answer.verdict for answer in others} == {""}  # nothing of them was run
    found["lora lora"] = dict.fromkeys(TASKS, 0.95)
    assert answers(lambda name: found.get(name, {}))[0].verdict == "not supported"
    found["lora lora"] = {(task, seed): 0.9 + 0.2 * (seed % 2) - 0.1 for task, seed in TASKS}
    assert answers(lambda name: found.get(name, {}))[0].verdict == "undecided"


def test_a_lower_loss_is_the_better_one() -> None:
    claim = Claim(1, "", (Question("", "a loss", "b loss", matters=None, lower=True),))
    found = {"a loss": values(0.2), "b loss": dict.fromkeys(TASKS, 0.45)}
    (told,) = answers(lambda name: found[name], (claim,))
    assert told.verdict == "supported"
    assert told.findings[0].paired.difference > 0


def test_every_claim_names_what_the_plan_makes() -> None:
    made = {"alignment", "zero-shot"}
    known = {
        f"{v.name} {row}" for v in suite(False).variants for row in [*v.modes, "zero-shot", *["alignment"] * v.aligned]
    }
    assert made
    for claim in CLAIMS:
        for question in (*claim.questions, *claim.beside):
            assert {question.a, question.b} <= known


def test_banks_and_the_wide_lora_hold_equal_numbers() -> None:
    settings = {v.name: v.settings for v in suite(False).variants}
    assert settings["wide"]["rank"] == settings["mhr"]["rank"] * settings["mhr"]["n_skills"]
    assert {s["alpha"] / s["rank"] for s in settings.values() if "rank" in s} == {1.0}
    units = units_of(suite(False))
    assert len({unit.name for unit in units}) == len(units) == 6 * 5 + 6 * 3


@pytest.mark.slow
def test_a_small_study_from_training_to_its_page(tmp_path: Path) -> None:
    few = suite(True)
    few = dataclasses.replace(
        few, variants=tuple(v for v in few.variants if v.name in ("lora", "poly", "mhr-mu")), seeds=(1,)
    )
    few.adapt["steps"] = 1
    for unit in units_of(few):
        assert do(unit, tmp_path / "runs") > 0
        assert do(unit, tmp_path / "runs") == 0  # nothing is done twice
    told = publish([few], tmp_path / "runs", tmp_path / "results", tmp_path / "docs", "the command", quick=True)
    assert any("claim 4: " in line for line in told)
    record = json.loads((tmp_path / "results" / "study_suite_quick.json").read_text())
    assert set(record["scores"]) == {
        "lora lora", "poly mhr", "poly z", "poly mu", "lora zero-shot", "poly zero-shot", "mhr-mu zero-shot",
    }  # fmt: skip
    assert len(record["alignment"]["poly-1"]) == 6
    page = (tmp_path / "docs" / "study_quick.md").read_text()
    for line in ("`the command`", "### Claims", "### Questions", "| Poly-z |", "![Score against the parameters"):
        assert line in page
    for name in ("costs", "alignment"):
        assert (tmp_path / "docs" / f"study_suite_{name}_quick.svg").is_file()
    report = read_sources([tmp_path / "results" / "study_suite_quick.json"])
    assert "poly z" in report.scores.contestants
    assert report.groups["poly z"].trained == record["runs"]["poly z"]["parameters"]["trained"]


def test_without_real_tasks_only_the_suite_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mhr_benchmarks.studies.paper.default_tasks", lambda: str(tmp_path / "none"))
    monkeypatch.setattr("sys.argv", ["study", "--output", str(tmp_path), "--quick", "--only-publish"])
    main()
    assert f"no real tasks at {tmp_path / 'none'}: only the suite is run" in capsys.readouterr().err
