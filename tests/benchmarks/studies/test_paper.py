"""The study of the paper's claims: its questions, its plan, its trials, and a small run from training to the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mhr.analysis.verdicts import Question
from mhr.data import load_tasks
from mhr.data.skills import skills_suite
from mhr.errors import DivergedError
from mhr.report.sources import read_sources
from mhr_benchmarks.studies import paper, paper_settings
from mhr_benchmarks.studies.choices import frozen
from mhr_benchmarks.studies.claims import Claim, answers
from mhr_benchmarks.studies.paper import choose, do, plan_of_trials, trial_loss, trial_scores
from mhr_benchmarks.studies.paper_claims import CLAIMS
from mhr_benchmarks.studies.paper_page import publish
from mhr_benchmarks.studies.paper_plan import (
    LOSS,
    RANK,
    SCREEN,
    SKILLS,
    TEST,
    TRIAL,
    VARIANTS,
    Plan,
    Setting,
    Unit,
    trials,
    units,
)
from mhr_benchmarks.studies.paper_settings import suite
from mhr_benchmarks.studies.stages import Stages, states_of

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
    second = answers(lambda name: found.get(name, {}), CLAIMS, finished=True)[1]
    assert second.verdict == "supported"
    assert [finding.verdict for finding in second.beside] == ["not supported", "supported"]
    others = [
        answer
        for answer in answers(lambda name: found.get(name, {}), CLAIMS, finished=True)
        if answer.claim.number != 2
    ]
    assert {answer.verdict for answer in others} == {""}  # nothing of them was run
    early = answers(lambda name: found.get(name, {}), CLAIMS, finished=False)[1]
    assert {early.verdict, *(finding.verdict for finding in (*early.findings, *early.beside))} == {"not finished"}
    assert [f.paired for f in early.findings] == [f.paired for f in second.findings]
    found["lora lora"] = dict.fromkeys(TASKS, 0.95)
    assert answers(lambda name: found.get(name, {}), CLAIMS, finished=True)[1].verdict == "not supported"
    found["lora lora"] = {(task, seed): 0.9 + 0.2 * (seed % 2) - 0.1 for task, seed in TASKS}
    assert answers(lambda name: found.get(name, {}), CLAIMS, finished=True)[1].verdict == "undecided"


def test_a_claim_of_which_a_part_was_not_run_is_not_supported() -> None:
    found = {"mhr mhr": values(0.9), "poly mhr": dict.fromkeys(TASKS, 0.8), "lora lora": dict.fromkeys(TASKS, 0.85)}
    second = answers(lambda name: found.get(name, {}), CLAIMS, finished=True)[1]
    assert {finding.verdict for finding in second.findings} == {"supported"}
    assert second.verdict == "not asked in full"
    found["poly mhr"] = dict.fromkeys(TASKS, 0.95)  # one question is enough to say that it is not
    assert answers(lambda name: found.get(name, {}), CLAIMS, finished=True)[1].verdict == "not supported"


def test_a_lower_loss_is_the_better_one() -> None:
    claim = Claim(1, "", (Question("", "a loss", "b loss", matters=None, lower=True),))
    found = {"a loss": values(0.2), "b loss": dict.fromkeys(TASKS, 0.45)}
    (told,) = answers(lambda name: found[name], (claim,), finished=True)
    assert told.verdict == "supported"
    assert told.findings[0].paired.difference > 0


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return suite(tmp_path_factory.mktemp("study"), quick=True)


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


def chosen(setting: Setting, lr: float = 3e-3, rate: float = 0.1) -> dict[str, Any]:
    """Choices that no trial made."""
    methods = {
        v.name: {
            "lr": lr,
            "modes": dict.fromkeys(v.modes, rate),
            "losses": {f"{lr:g}": None},
            "trials": {f"{lr:g}": {mode: {f"{rate:g}": 0.5} for mode in v.modes}},
        }
        for v in setting.variants
    }
    return {"methods": methods}


def test_tasks_of_the_trials_are_trained_on_by_no_run_and_judge_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_settings, "skills_suite", lambda *sizes: skills_suite(0, 30, 110))
    full = suite(tmp_path)
    (test,) = full.folds
    assert (len(test.training), len(full.trials.judged), len(test.judged)) == (59, 12, 15)
    assert full.trials.training == test.training
    assert not {*test.training} & {*full.trials.judged, *test.judged}
    read = load_tasks(test.file, limit_test=400)
    assert set(read.training()) == set(test.training)
    assert set(read.held_out()) == {*full.trials.judged, *test.judged}
    assert len({read[name].category for name in full.trials.judged}) == 3
    assert (len(read[test.judged[0]].test), len(read[test.training[0]].test)) == (110, 20)
    made = units(full, chosen(full))
    assert len({unit.folder for unit in made}) == len(made) == 16 * 4 + 8 * 2
    assert [unit.seed for unit in made[:6]] == [101] * 6
    assert len(units(full, chosen(full), seeds=2)) == 12


def test_every_real_task_is_tested_once_by_runs_that_never_saw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_settings, "encoder", lambda: "a folder")
    rows = [
        {"task": f"t{t:02}", "input": f"{t} {i}", "targets": ["no", "yes"][i % 2], "choices": ["no", "yes"], "split": split,
         "category": f"c{t % 4}"}
        for t in range(17)
        for split, first, last in (("train", 0, 250), ("test", 250, 260))
        for i in range(first, last)
    ]  # fmt: skip
    file = tmp_path / "source.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = paper_settings.real(tmp_path, str(file))
    judged = [task for fold in made.folds for task in fold.judged]
    assert len(made.folds) == 2
    assert len(judged) == len(set(judged)) == 17 - len(made.trials.judged) == 11
    for fold, screen in zip(made.folds, made.screens, strict=True):
        assert not set(fold.judged) & set(fold.training)
        assert set(made.trials.judged) <= set(fold.training)
        assert (fold.judged, fold.training) == (screen.judged, screen.training)
    fold, screen = made.folds[0], made.screens[0]
    held, other = (load_tasks(tasks.file).held_out() for tasks in (fold, screen))
    assert set(held) == set(fold.judged)
    first = fold.judged[0]
    assert not {e.input for e in held[first].test} & {e.input for e in other[first].test}  # nothing is looked at twice
    assert not {e.input for e in other[first].train} & {e.input for e in other[first].test}
    kept = judged[:4]
    made_units = units(made, chosen(made) | {"kept": kept})
    assert {task for unit in made_units for task in unit.judged} == set(kept)
    assert len({unit.folder for unit in made_units}) == (4 * 10 + 5) * 2
    assert not made.zero_shot


def test_the_decoder_is_judged_on_held_out_tasks_with_choices_and_short_inputs(
    tmp_path: Path, backbone: Callable[..., str]
) -> None:
    kinds = {"train": (6, False), "held": (3, True), "free": (2, True), "long": (2, True)}
    rows = [
        {"task": f"{kind}{t}", "input": str(i) * (100 if kind == "long" else 10), "targets": str(i) if kind == "free" else ["no", "yes"][i % 2], "split": split,
         "category": f"c{t}", "held_out": held_out}
        | ({"choices": ["no", "yes"]} if kind != "free" else {})
        for kind, (n, held_out) in kinds.items()
        for t in range(n)
        for split, first, last in (("train", 10, 40), ("test", 40, 50))
        for i in range(first, last)
    ]  # fmt: skip
    file = tmp_path / "source.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = paper_settings.decoder(tmp_path, str(file), model=backbone("llama"))
    (fold,) = made.folds
    assert fold.judged == ("held0", "held1", "held2")
    assert len(made.trials.judged) == 3
    assert set(made.trials.judged) | set(fold.training) == {f"train{t}" for t in range(6)}
    assert not set(made.trials.judged) & set(fold.training)
    assert set(load_tasks(fold.file).training()) == set(fold.training)
    assert made.zero_shot
    assert [(v.name, v.modes) for v in made.variants] == [("lora", ("lora",)), ("poly", ("mhr",)), ("mhr", ("mhr",))]
    assert len(trials(made)) == 3 * 3
    assert len(units(made, chosen(made))) == 3 * 3


def made_up(asked: list[tuple[str, ...]], score: Callable[[Unit, float], float]) -> Callable[..., None]:
    """In place of the runs: scores that a function gives, and of trials the rate as the loss."""

    def run_all(do: object, pieces: list[Unit], output: Path, workers: int) -> None:
        for unit in pieces:
            asked.append((unit.folder, *unit.rates))
            scores = {
                f"{mode} {rate:g}" if unit.kind == TRIAL else mode: {
                    task: {str(unit.seed): {"score": score(unit, rate), "majority": 0.5}} for task in unit.judged
                }
                for mode, rates in unit.rates.items()
                for rate in rates
            }
            (output / unit.folder).mkdir(parents=True, exist_ok=True)
            losses = {"losses": {"4": {"t": unit.lr}}} if unit.kind == TRIAL else {}
            (output / unit.folder / "state.json").write_text(json.dumps({"scores": scores, **losses}))

    return run_all


def test_trials_choose_for_each_variant_and_mode(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate of pretraining by the best rate of the first mode, those of other modes from that run."""
    asked: list[tuple[str, ...]] = []
    rates = (0.001, 0.003, 0.01, 0.03)
    setting = replace(setting, plan=Plan(seeds=(1,), rates=rates, adapt_rates=rates[1:]))
    monkeypatch.setattr(
        paper, "run_all", made_up(asked, lambda unit, rate: 0.5 + 0.1 * (unit.lr == 0.003) - abs(rate - 0.003))
    )
    choose(setting, tmp_path, tmp_path / "paper.json", 1)
    assert asked[-1] == ("suite/trials/mhr-0.003", "mhr", "z", "mu")
    assert len(asked) == 6 * 4 + 1
    decided = frozen(tmp_path / "paper.json", plan_of_trials(setting), committed=False)
    assert decided is not None
    assert {name: own["lr"] for name, own in decided["methods"].items()} == {v.name: 0.003 for v in VARIANTS}
    assert decided["methods"]["mhr"]["modes"] == {"mhr": 0.003, "z": 0.1, "mu": 0.003}
    tried = decided["methods"]["lora"]["trials"]
    assert set(tried) == {"0.001", "0.003", "0.01", "0.03"}
    assert all(set(modes["lora"]) == {"0.003", "0.01", "0.03"} for modes in tried.values())
    assert decided["methods"]["wide"]["losses"] == {f"{rate:g}": rate for rate in rates}
    assert "kept" not in decided
    # More test seeds are no other plan.
    more = replace(setting, plan=replace(setting.plan, seeds=(1, 2)))
    assert frozen(tmp_path / "paper.json", plan_of_trials(more), committed=False)


def test_losses_are_of_the_rate_with_the_lowest_loss(setting: Setting) -> None:
    """A rate that was chosen for scores may be far from it, and would favour a method for which it is the same."""
    decided = chosen(setting)
    decided["methods"]["lora"]["losses"] = {"0.001": 0.9, "0.003": 0.6, "0.01": 0.4, "0.03": None}
    decided["methods"]["mhr"]["losses"] = {"0.001": 0.5, "0.003": 0.2, "0.01": 0.4, "0.03": None}
    planned = units(setting, decided, seeds=1)
    extra = [unit for unit in planned if unit.kind == LOSS]
    assert [(unit.variant.name, unit.lr, unit.rates, unit.judged) for unit in extra] == [("lora", 0.01, {}, ())]
    assert len({unit.folder for unit in planned}) == len(planned) == 7
    assert [unit.lr for unit in planned if unit.kind == TEST] == [0.003] * 6


def test_tasks_without_headroom_are_left_out(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    fold = setting.folds[0]
    folds = (replace(fold, judged=fold.judged[:1]), replace(fold, judged=fold.judged[1:]))
    setting = replace(setting, folds=folds, screens=folds)
    scores = {("lora", 0): 0.5, ("mhr", 0): 0.9, ("lora", 1): 0.55, ("mhr", 1): 0.6}

    def score(unit: Unit, rate: float) -> float:
        return scores[unit.variant.name, unit.fold] if unit.kind == SCREEN else 0.5

    monkeypatch.setattr(paper, "run_all", made_up(asked, score))
    choose(setting, tmp_path, tmp_path / "paper.json", 1)
    screened = [f"suite/screen/{name}-100-{fold}" for name in ("lora", "mhr") for fold in (0, 1)]
    assert [folder for folder, *_ in asked[-4:]] == screened
    decided = frozen(tmp_path / "paper.json", plan_of_trials(setting), committed=False)
    assert decided is not None
    assert decided["kept"] == list(fold.judged[:1])
    assert decided["screening"][fold.judged[1]] == {"score": pytest.approx(0.575), "majority": 0.5}


def test_a_trial_that_diverges_is_the_worst_and_a_test_run_that_does_ends_the_study(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(unit: Unit, stages: Stages) -> None:
        first, *rest = unit.judged
        for rate, names in ((0.003, unit.judged), (0.01, (first,))):
            stages.state["scores"][f"lora {rate:g}"] = {name: {str(unit.seed): {"score": 0.5}} for name in names}
        raise DivergedError("the loss is nan at step 3")

    monkeypatch.setattr(paper, "_make", fails)
    tried = replace(trials(setting)[0], rates={"lora": (0.003, 0.01, 0.03)})
    do(tried, tmp_path)
    assert trial_scores(tried, tmp_path) == {"lora": {0.003: 0.5, 0.01: 0.0, 0.03: 0.0}}
    assert trial_loss(tried, tmp_path) is None
    assert tried in states_of([tried], tmp_path)  # it is not tried again
    with pytest.raises(DivergedError):
        do(units(setting, chosen(setting))[0], tmp_path)


def test_an_adaptation_that_diverges_in_a_trial_leaves_the_others(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adapt(self: Stages, row: str, run: object, mode: str, tasks: Any, seed: int, **settings: Any) -> None:
        if settings["lr"] > 0.01:
            raise DivergedError("the loss is nan at step 3")
        self.state["scores"][row] = {name: {str(seed): {"score": 0.5}} for name in tasks}

    monkeypatch.setattr(Stages, "adapt", adapt)
    monkeypatch.setattr(paper, "_pretrained", lambda *args, **more: None)
    monkeypatch.setattr(paper, "_losses", lambda *args: None)
    tried = replace(trials(setting)[3], rates={"mhr": (0.03, 0.003), "mu": (0.003,)})
    do(tried, tmp_path)
    assert trial_scores(tried, tmp_path) == {"mhr": {0.03: 0.0, 0.003: 0.5}, "mu": {0.003: 0.5}}


def test_a_mode_without_any_score_stops_the_study(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper, "run_all", made_up([], lambda unit, rate: 0.0 if rate in (0.1, 1.0) else 0.5))
    setting = replace(setting, plan=Plan(seeds=(1,), router_rates=(0.1, 1.0)))
    with pytest.raises(SystemExit, match="mhr: no trial of mode 'z' scored above 0"):
        choose(setting, tmp_path, tmp_path / "paper.json", 1)
    assert not (tmp_path / "paper.json").exists()


@pytest.mark.slow
def test_a_small_study_from_training_to_its_page(setting: Setting, tmp_path: Path) -> None:
    decided = chosen(setting)
    decided["methods"]["lora"] |= {"losses": {"0.003": 0.5, "0.01": 0.4}}
    decided["methods"]["lora"]["trials"]["0.01"] = {"lora": {"0.1": 0.4}}
    planned = units(setting, decided, seeds=1)
    made = [unit for unit in planned if unit.variant.name in ("lora", "mhr")]
    assert [unit.kind for unit in made] == [TEST, LOSS, TEST]
    for unit in made:
        do(unit, tmp_path)
        kept = (tmp_path / unit.folder / "state.json").read_text()
        do(unit, tmp_path)
        assert (tmp_path / unit.folder / "state.json").read_text() == kept  # nothing is done twice
    told = publish(setting, planned, decided, tmp_path, tmp_path / "results", tmp_path / "docs", "the command")
    assert "Claim 4: not finished" in told
    record = json.loads((tmp_path / "results" / "study_suite.json").read_text())
    assert set(record["scores"]) == {
        "lora lora", "mhr mhr", "mhr z", "mhr mu", "lora zero-shot", "mhr zero-shot", "lora further zero-shot",
        "mhr further zero-shot",
    }  # fmt: skip
    assert record["losses"]["mhr-1"].keys() == {"2", "4"}
    assert len(record["losses"]["mhr-1"]["4"]) == len(setting.folds[0].training)
    page = (tmp_path / "docs" / "study.md").read_text()
    for line in (
        "`the command`",
        "**Not finished: 3 of 7",
        "| shared LoRA | 0.01 |",
        "| shared LoRA, at the rate of its score | 0.003 |",
        "| MHR | 0.003 |",
        "    poly      8 skills of rank 2, one head",
        "### Questions",
        "| MHR-z |",
        "### What it cost",
        "### Trials",
        "At an end of their range: shared LoRA, pretraining 0.003, shared LoRA, adaptation 0.1, ",
        "80% power is reached for a difference of ",
    ):
        assert line in page
    report = read_sources([tmp_path / "results" / "study_suite.json"])
    assert report.groups["mhr z"].trained == record["runs"]["mhr z"]["parameters"]["trained"]
