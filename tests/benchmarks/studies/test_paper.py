"""The study of the paper's claims: its rule, its plan, and a small run from training to the page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mhr.analysis.compare import compare
from mhr.report.sources import read_sources
from mhr_benchmarks.studies.paper import do, main
from mhr_benchmarks.studies.paper_claims import CLAIMS, Comparison, answer, judge
from mhr_benchmarks.studies.paper_page import publish
from mhr_benchmarks.studies.paper_plan import suite, units_of


def verdict(differences: dict[int, list[float]], margin: float = 0.0, least: float | None = 0.01) -> str:
    """Of the rule. differences: seed -> one a task."""
    a = {(str(task), seed): d for seed, own in differences.items() for task, d in enumerate(own)}
    paired = compare(a, dict.fromkeys(a, 0.0))
    assert paired is not None
    return judge(Comparison("", "", "", margin, least), paired, list(a.values())).verdict


def test_a_gain_is_confirmed_where_it_is_sure_in_all_seeds_but_one_in_four() -> None:
    gain = [0.04, 0.05, 0.06, 0.03]
    loss = [-d for d in gain]
    assert verdict(dict.fromkeys(range(5), gain)) == "confirmed"
    assert verdict(dict.fromkeys(range(5), gain) | {4: [-0.01] * 4}) == "confirmed"
    assert verdict(dict.fromkeys(range(8), gain) | {3: loss, 4: loss, 5: loss}) == "unclear"
    assert verdict(dict.fromkeys(range(3), gain) | {2: [-0.01] * 4}) == "unclear"  # of three seeds none may differ
    assert verdict({1: [0.04, 0.05, 0.06]}) == "unclear"  # too few for p < 0.05


def test_a_loss_and_a_gain_that_would_not_matter_are_not_confirmed() -> None:
    assert verdict(dict.fromkeys(range(3), [-0.04, -0.05, -0.06])) == "not confirmed"
    assert verdict(dict.fromkeys(range(3), [0.002, -0.002, 0.001, -0.0005])) == "not confirmed"
    assert verdict(dict.fromkeys(range(3), [0.02, -0.015, 0.03, 0.002])) == "unclear"


def test_as_good_as_is_measured_from_the_loss_that_one_accepts() -> None:
    assert verdict(dict.fromkeys(range(3), [-0.005, 0.01, 0.0, -0.01]), margin=-0.02, least=None) == "confirmed"
    assert verdict(dict.fromkeys(range(3), [-0.05, -0.06, -0.04, -0.05]), margin=-0.02, least=None) == "not confirmed"
    assert verdict(dict.fromkeys(range(3), [-0.03, 0.0, -0.02, -0.03]), margin=-0.02, least=None) == "unclear"


def test_a_claim_is_as_sure_as_what_counts_for_it() -> None:
    tasks = [(f"t{i}", seed) for i in range(6) for seed in range(3)]
    values = {
        "mhr mhr": dict.fromkeys(tasks, 0.9),
        "poly mhr": dict.fromkeys(tasks, 0.8),
        "wide lora": dict.fromkeys(tasks, 0.7),
        "lora lora": dict.fromkeys(tasks, 0.95),
    }
    found = answer(CLAIMS[0], lambda name: values.get(name, {}))
    assert found.verdict == "confirmed"  # the LoRA of the same rank stands beside
    assert [f.verdict for f in found.findings[3:]] == ["not confirmed", "not confirmed"]
    values["wide lora"] = dict.fromkeys(tasks, 0.85)
    assert answer(CLAIMS[0], lambda name: values.get(name, {})).verdict == "not confirmed"
    assert answer(CLAIMS[5], lambda name: values.get(name, {})).verdict == ""  # nothing of it was run


def test_every_claim_names_what_the_plan_makes() -> None:
    made = {"alignment", "zero-shot"}
    known = {
        f"{v.name} {row}" for v in suite(False).variants for row in [*v.modes, "zero-shot", *["alignment"] * v.aligned]
    }
    assert made
    for claim in CLAIMS:
        for comparison in claim.comparisons:
            assert {comparison.a, comparison.b} <= known


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
    for line in ("`the command`", "### Claims", "| Poly-z |", "![Score against the parameters"):
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
