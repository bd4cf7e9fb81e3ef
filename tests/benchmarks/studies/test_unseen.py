"""The study of unseen tasks: its plan and trials, and a small run from training to the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mhr.methods import METHODS, refusal
from mhr_benchmarks.studies import unseen, unseen_plan, unseen_settings
from mhr_benchmarks.studies.choices import frozen
from mhr_benchmarks.studies.unseen import choose, do, plan_of_trials
from mhr_benchmarks.studies.unseen_claims import CLAIMS
from mhr_benchmarks.studies.unseen_page import publish
from mhr_benchmarks.studies.unseen_plan import (
    EVALUATED,
    ROWS,
    TRAINED,
    TRIAL,
    Plan,
    Setting,
    Unit,
    adapting_trials,
    few_shot,
    trials,
    units,
    zero_shot,
)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unseen_settings, "encoder", lambda: "backbone")
        return unseen_settings.suite(tmp_path_factory.mktemp("study"), quick=True)


def chosen(setting: Setting) -> dict[str, Any]:
    """Choices that no trial made."""
    return {
        "trained": {
            one.name: {
                "lr": 1e-3,
                "trials": {"0.001": 0.5},
                "rows": {row.name: 1e-3 for row in setting.rows(one) if row.mode},
                "row_trials": {row.name: {"0.001": 0.5} for row in setting.rows(one) if row.mode},
            }
            for one in setting.trained
        }
    }


def test_every_row_answers_from_what_is_trained_and_every_question_is_about_rows() -> None:
    methods = {one.name: one.method for one in TRAINED}
    assert {row.trained for row in ROWS} == set(methods)
    known = {name(row.name) for row in ROWS for name in (zero_shot, few_shot) if name is zero_shot or row.mode}
    asked = [question for claim in CLAIMS for question in (*claim.questions, *claim.beside)]
    assert len(asked) > 10
    assert {side for question in asked for side in (question.a, question.b)} <= known
    adapted = [row for row in ROWS if row.mode and methods[row.trained] in METHODS]
    assert len(adapted) >= 7
    assert all(refusal(row.mode or "", methods[row.trained], averaged=False) is None for row in adapted)


def test_a_method_that_is_not_there_is_left_out(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unseen_plan, "METHODS", {name: METHODS[name] for name in ("mhr", "lora")})
    assert [one.name for one in setting.trained] == ["lora", "mhr"]


def test_encoders_have_no_rows_that_only_generators_have(setting: Setting) -> None:
    (private,) = [one for one in setting.trained if one.name == "private"]
    generator, encoder = ({row.name for row in replace(setting, generates=g).rows(private)} for g in (True, False))
    assert generator - encoder == {"Arrow", "LoraHub"}
    assert encoder == {"private LoRAs, average"}


def test_tasks_of_the_trials_are_trained_on_by_no_run(setting: Setting) -> None:
    assert not set(setting.trials.judged) & {*setting.tests.judged, *setting.tests.training}
    assert setting.trials.training == setting.tests.training


def test_all_that_is_trained_has_as_many_trials(setting: Setting) -> None:
    setting = replace(setting, plan=Plan())
    first = trials(setting)
    assert len({unit.folder for unit in first}) == len(first) == 3 * len(setting.trained)
    assert all(unit.rates == {} and len(unit.rows) == 1 for unit in first)
    further = adapting_trials(setting, {one.name: 3e-3 for one in setting.trained})
    assert {unit.folder for unit in further} <= {unit.folder for unit in first}
    assert {len(rates) for unit in further for rates in unit.rates.values()} == {3}
    planned = units(setting, chosen(setting))
    assert len({unit.folder for unit in planned}) == len(planned) == 3 * len(setting.trained)
    assert len(units(setting, chosen(setting), seeds=1)) == len(setting.trained)


def test_trials_choose_for_what_is_trained_and_for_each_row(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_all(do: object, pieces: list[Unit], output: Path, workers: int) -> None:
        """In place of the runs: the best rate of pretraining is 3e-3, of adaptation 1e-2."""
        for unit in pieces:
            assert unit.kind == TRIAL
            scores = {zero_shot(unit.rows[0].name): 0.5 - abs(unit.lr - 3e-3)}
            scores |= {f"{few_shot(row)} {rate:g}": rate for row, rates in unit.rates.items() for rate in rates}
            state = {
                row: {task: {str(unit.seed): {"score": score}} for task in unit.tasks.judged}
                for row, score in scores.items()
            }
            (output / unit.folder).mkdir(parents=True, exist_ok=True)
            (output / unit.folder / "state.json").write_text(json.dumps({"scores": state}))

    monkeypatch.setattr(unseen, "run_all", run_all)
    setting = replace(setting, plan=Plan())
    file = tmp_path / "unseen.json"
    choose(setting, tmp_path, file, 1)
    decided = frozen(file, plan_of_trials(setting), committed=False)
    assert decided is not None
    assert {own["lr"] for own in decided["trained"].values()} == {3e-3}
    rows = decided["trained"]["mhr"]["rows"]
    assert rows == {"MHR, uniform weights": 1e-2, "MHR, nearest task": 1e-2}
    assert decided["trained"]["private"]["rows"] == {"private LoRAs, average": 1e-2}
    assert len(units(setting, decided)) == 3 * len(setting.trained)
    # More test seeds are no other plan, another encoder's place neither.
    more = replace(setting, plan=Plan(seeds=(1, 2, 3, 4)), encoder="elsewhere")
    assert frozen(file, plan_of_trials(more), committed=False)


def test_real_tasks_are_shared_out_by_their_split(
    tmp_path: Path, backbone: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unseen_settings, "encoder", lambda: backbone("bert"))
    rows = [
        {"task": f"t{t:02}", "input": f"{t} {i}", "targets": ["no", "yes"][i % 2], "choices": ["no", "yes"], "split": split,
         "category": f"c{t % 4}", "held_out": t > 9, "definition": f"Task {t}."}
        for t in range(12)
        for split, first, last in (("train", 0, 40), ("test", 40, 50))
        for i in range(first, last)
    ]  # fmt: skip
    file = tmp_path / "source.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = unseen_settings.minilm(tmp_path, str(file))
    assert made.tests.judged == ("t10", "t11")
    assert len(made.trials.judged) == 4
    assert set(made.trials.judged) | set(made.tests.training) == {f"t{t:02}" for t in range(10)}
    read = unseen.load_tasks(made.tests.file)
    assert read["t11"].definition == "Task 11."
    assert set(read.training()) == set(made.tests.training)


def test_the_page_of_what_is_done(setting: Setting, tmp_path: Path) -> None:
    planned = units(setting, chosen(setting))
    made = [unit for unit in planned if unit.trained.name in ("mhr", "context-shots")]
    for unit in made:
        score = 0.25 if unit.trained.name == "mhr" else 0.75
        names = [name(row.name) for row in unit.rows for name in (zero_shot, few_shot)]
        state = {
            "done": {row: list(rates) for row, rates in unit.rates.items()},
            "scores": {name: {t: {str(unit.seed): {"score": score}} for t in unit.tasks.judged} for name in names},
            "cpu_seconds": {"pretrain": 60.0},
            "runs": {
                name: {"parameters": {"trained": 1234}} for name in ("pretrained", *map("adapted {}".format, names))
            },
        }
        (tmp_path / unit.folder).mkdir(parents=True)
        (tmp_path / unit.folder / "state.json").write_text(json.dumps(state))
    page = publish(setting, planned, chosen(setting), tmp_path, tmp_path / "results", "the command")
    assert page == (tmp_path / "results" / "unseen_suite.md").read_text()
    for part in (
        "`the command`",
        f"**Not finished: 2 of {len(planned)} runs are done.**",
        "2 CPU minutes",
        "| MHR, uniform weights | 25.0 | 25.0 | 1,234 | 1,234 |",
        "| context-mhr, shots | 75.0 | 75.0 | 1,234 | 1,234 |",
        "| context-mhr, shots above MHR, uniform weights | +50.0 |",
    ):
        assert part in page, part
    record = json.loads((tmp_path / "results" / "unseen_suite.json").read_text())
    assert record["scores"].keys() == {
        zero_shot(row.name) for unit in made for row in unit.rows
    } | {few_shot(row.name) for unit in made for row in unit.rows}  # fmt: skip
    assert publish(setting, planned, chosen(setting), tmp_path / "none", tmp_path, "").startswith("No test seed")


@pytest.mark.slow
@pytest.mark.parametrize("name", [one.name for one in TRAINED if one.method in METHODS])
def test_what_is_trained_answers_and_is_adapted(setting: Setting, name: str, tmp_path: Path) -> None:
    (unit,) = [unit for unit in units(setting, chosen(setting)) if unit.trained.name == name]
    do(unit, tmp_path)
    kept = (tmp_path / unit.folder / "state.json").read_text()
    do(unit, tmp_path)
    assert (tmp_path / unit.folder / "state.json").read_text() == kept  # nothing is done twice
    scores = json.loads(kept)["scores"]
    assert set(scores) == {zero_shot(row.name) for row in unit.rows} | {few_shot(row) for row in unit.rates}
    assert all(set(own) == set(setting.tests.judged) for own in scores.values())
    if unit.rows[0].answers == EVALUATED:
        assert (tmp_path / unit.folder / "run" / "run.json").is_file()
