"""The few-shot protocol: validation examples, evaluations, and what the result says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mhr.adapters import read_adapter
from mhr.data import load_tasks
from mhr.errors import ConfigError, DataError, DivergedError, MhrError, TaskError
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapt, selecting
from mhr.few_shot.adapting import check_given, few_shot_settings
from mhr.few_shot.selecting import Validated, grid_points, share_out
from mhr.few_shot.shots import shots_of
from mhr.runs import RunConfig, RunFolder, load_config
from mhr.runs.adapt_settings import AdaptConfig
from mhr.training import pretrain
from mhr.training.trainer import RoutedTrainer

Source = Callable[[str], RunFolder]
TASK = "next-first"


@pytest.fixture
def searched(source: Source, tmp_path: Path) -> Callable[..., RunFolder]:
    """One adaptation of the MHR run to one task with these few-shot settings."""

    def make(name: str = "out", **few: Any) -> RunFolder:
        settings = {"mode": "mhr", "steps": 6, "eval_every": None, **few}
        (run,) = adapt(str(source("mhr").path), [TASK], output=str(tmp_path / name), progress=False, **settings)
        return run

    return make


def config_of(few: AdaptConfig, method: str = "mhr") -> RunConfig:
    """Settings of a run of a method, with these of its adaptations."""
    return replace(load_config(method=method), adapt=few)


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return read_adapter(run.adapter).tensors


def test_without_a_choice_nothing_is_judged(searched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selecting, "evaluate", lambda *args, **kwargs: pytest.fail("nothing is to be chosen"))
    run = searched()
    assert run.info["protocol"] == "held-out"
    assert run.info["selection"] is None
    assert len(run.info["shots"]) == 8
    assert run.info["steps"] == 6
    assert not (run.path / "trials").exists()
    again = searched("again", select="last")
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(again).values(), strict=True))


def test_a_grid_is_chosen_on_a_quarter_of_the_shots_and_trained_again_on_all(searched: Any) -> None:
    run = searched(grid={"lr": [1e-2, 1e-6], "router_lr": [0.5]})
    chosen = run.info["selection"]
    assert (chosen["on"], chosen["examples"], chosen["refit"]) == ("a quarter of the shots", 2, True)
    assert [trial["settings"] for trial in chosen["trials"]] == [
        {"lr": 1e-2, "router_lr": 0.5},
        {"lr": 1e-6, "router_lr": 0.5},
    ]
    best = chosen["trials"][chosen["chosen"]]
    assert (best["score"], -best["loss"]) == max((t["score"], -t["loss"]) for t in chosen["trials"])
    assert all(trial["step"] == 6 for trial in chosen["trials"])
    # The result is the training on all shots that anyone would have made with the chosen settings.
    alone = searched("alone", lr=best["settings"]["lr"], router_lr=0.5)
    assert alone.info["shots"] == run.info["shots"]
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(alone).values(), strict=True))
    assert run.config().train.lr == best["settings"]["lr"]
    assert [record["step"] for record in run.metrics()] == list(range(1, 7))
    trials = [RunFolder(run.path / "trials" / str(i), {}).metrics() for i in (0, 1)]
    assert all(len(trial) == 6 for trial in trials)


def test_points_with_unequal_losses_are_judged_by_one(searched: Any) -> None:
    """Else among equal scores the smallest weight of a ranking term would be the best one, whatever the model is."""
    run = searched(mode="mu", lr=1e-12, steps=1, grid={"mc_loss": [0.0, 1.0], "unlikely_loss": [0.0, 1.0]})
    losses = [trial["loss"] for trial in run.info["selection"]["trials"]]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    assert len(run.info["selection"]["trials"]) == 4


def test_a_metric_of_test_splits_leaves_the_choice_on_shots_to_the_usual_one(source: Source, tmp_path: Path) -> None:
    file = tmp_path / "mnli.jsonl"
    splits = {"train": 12, "validation_matched": 2, "validation_mismatched": 2}
    labels = ("entailment", "neutral", "contradiction")
    rows = [
        {"task": "mnli", "split": split, "premise": f"p {n}", "hypothesis": f"{split} {n}", "label": labels[n % 3]}
        for split, count in splits.items()
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few: dict[str, Any] = {"tasks_path": str(file), "grid": {"lr": [1e-2, 1e-3]}, "steps": 1, "progress": False}
    (run,) = adapt(str(source("mhr").path), ["mnli"], mode="mu", output=str(tmp_path / "out"), **few)
    assert [trial["score"] in (0.0, 0.5, 1.0) for trial in run.info["selection"]["trials"]] == [True, True]
    assert (
        evaluate(load_model(run.path), load_tasks(file), progress=False).tasks["mnli"]["metric"] == "accuracy_matched"
    )


def test_looking_changes_nothing_of_the_training(searched: Any) -> None:
    looked = searched("looked", eval_every=2, dev_shots=4)
    plain = searched("plain")
    losses = [[record["loss"] for record in run.metrics()] for run in (looked, plain)]
    assert losses[0] == losses[1]
    assert [look["step"] for look in looked.info["selection"]["trials"][0]["looks"]] == [2, 4, 6]


def test_the_best_step_on_dev_shots_is_kept(searched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.25, 0.75, 0.5])
    monkeypatch.setattr(selecting.Validation, "__call__", lambda self, step: Validated(next(scores), 1.0, step))
    run = searched("best", eval_every=2, dev_shots=4)
    chosen = run.info["selection"]
    assert (chosen["on"], chosen["examples"], chosen["refit"]) == ("dev shots", 4, False)
    assert (run.info["steps"], chosen["trials"][0]["step"]) == (4, 4)
    # The same training, whose weights are taken after the fourth step.
    step = RoutedTrainer.training_step
    taken: dict[str, torch.Tensor] = {}

    def watch(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            taken.update({name: t.clone() for name, t in self.bank.tensors().items()})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(RoutedTrainer, "training_step", watch)
    searched("last")
    found = weights(run)
    assert all(torch.equal(found[name], tensor) for name, tensor in taken.items())


def test_patience_ends_a_training_and_the_refit_stops_at_the_same_step(
    searched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.25, 0.5])
    monkeypatch.setattr(selecting.Validation, "__call__", lambda self, step: Validated(next(scores), 1.0, step))
    run = searched(eval_every=1, patience=2, steps=20)
    trial = run.info["selection"]["trials"][0]
    assert [look["step"] for look in trial["looks"]] == [1, 2, 3]
    assert trial["step"] == run.info["steps"] == 1
    assert run.info["selection"]["refit"]
    assert [record["step"] for record in run.metrics()] == [1]
    # The learning rate is that of the long training, of which this is the beginning.
    assert run.metrics()[0]["lr"] == searched("long", steps=20).metrics()[0]["lr"]


@pytest.mark.parametrize("few", [{"protocol": "paper"}, {"dev_shots": 2}, {}], ids=["paper", "dev shots", "refit"])
def test_a_training_that_ends_before_its_first_log_is_logged_where_it_ends(
    few: dict[str, Any], settings: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pretrain(settings(steps=2, log_every=50), str(tmp_path / "source"), progress=False)
    scores = iter([0.25, 0.5, 0.25, 0.25])
    monkeypatch.setattr(selecting.Validation, "__call__", lambda self, step: Validated(next(scores), 1.0, step))
    asked: dict[str, Any] = {"eval_every": 1, "patience": 2, "steps": 20, "select": "best"}
    (run,) = adapt(str(source.path), [TASK], mode="mhr", output=str(tmp_path / "out"), progress=False, **asked, **few)
    assert run.info["steps"] == read_adapter(run.adapter).info["step"] == 2
    trial = RunFolder(run.path / "trials" / "0", {}).metrics()
    assert [record["step"] for record in trial] == [4]
    assert [record["step"] for record in run.metrics()] == [2 if run.info["selection"]["refit"] else 4]


def test_protocol_paper_chooses_on_the_test_examples_and_says_so(searched: Any, tasks_file: Path) -> None:
    run = searched(protocol="paper", grid={"lr": [1e-2, 1e-3]})
    chosen = run.info["selection"]
    assert run.info["protocol"] == "paper"
    assert (chosen["on"], chosen["examples"], chosen["refit"]) == ("test", 4, False)
    assert [look["step"] for look in chosen["trials"][0]["looks"]] == list(range(1, 7))
    loaded = load_model(run.path)
    result = evaluate(loaded, load_tasks(tasks_file).select([TASK]), progress=False)
    best = chosen["trials"][chosen["chosen"]]
    assert result.tasks[TASK]["score"] == best["score"]
    assert result.settings["protocol"] == "paper"


def test_held_out_never_looks_at_the_test_examples(
    searched: Any, monkeypatch: pytest.MonkeyPatch, tasks_file: Path
) -> None:
    tests = {example.input for example in load_tasks(tasks_file)[TASK].test}
    train = {example.input for example in load_tasks(tasks_file)[TASK].train}
    judged: list[str] = []
    judge = selecting.evaluate

    def seen(loaded: Any, collection: Any, **settings: Any) -> Any:
        judged.extend(example.input for task in collection.values() for example in task.test)
        return judge(loaded, collection, **settings)

    monkeypatch.setattr(selecting, "evaluate", seen)
    searched(grid={"lr": [1e-2, 1e-3]})
    assert set(judged) <= train
    assert not set(judged) & (tests - train)


def test_a_dev_collection_is_judged_on(searched: Any, tmp_path: Path, tasks_file: Path) -> None:
    dev = tmp_path / "dev.jsonl"
    lines = [json.loads(line) for line in tasks_file.read_text().splitlines()]
    own = [{**row, "split": "train"} for row in lines if row["task"] == TASK]
    others = [{**row, "input": f"x{row['input']}"} for row in own]
    dev.write_text("".join(json.dumps(row) + "\n" for row in others))
    run = searched(dev=str(dev), grid={"lr": [1e-2, 1e-3]})
    assert run.info["selection"]["on"] == str(dev)
    assert run.info["selection"]["examples"] == 28
    # What is tested on, or trained on, has no part in a choice.
    dev.write_text("".join(json.dumps(row) + "\n" for row in [*own, *others]))
    judged = searched("both", dev=str(dev), grid={"lr": [1e-2, 1e-3]}).info["selection"]
    assert judged["on"] == f"{dev}, without 12 that are shots or tested on"
    assert judged["examples"] == 2 * 28 - 12
    dev.write_text("".join(json.dumps(row) + "\n" for row in own[-4:]))
    with pytest.raises(DataError, match="all 4 examples in .* are shots or tested on"):
        searched("tested", dev=str(dev), grid={"lr": [1e-2, 1e-3]})
    # A validation split is what a collection has for this.
    parts = [{**row, "split": split} for split in ("train", "validation", "test") for row in others[:3]]
    dev.write_text("".join(json.dumps({**row, "input": f"{row['input']} {n}"}) + "\n" for n, row in enumerate(parts)))
    assert searched("split", dev=str(dev), grid={"lr": [1e-2, 1e-3]}).info["selection"]["examples"] == 3
    with pytest.raises(ConfigError, match="the collection that is tested on"):
        searched("same", dev=f"{tasks_file.parent}/./{tasks_file.name}", grid={"lr": [1e-2, 1e-3]})
    dev.write_text(dev.read_text().replace(TASK, "other"))
    with pytest.raises(TaskError, match=f"unknown task '{TASK}'"):
        searched("none", dev=str(dev), grid={"lr": [1e-2, 1e-3]})


def test_two_methods_see_the_same_shots_and_judge_on_the_same(source: Source, tmp_path: Path, tasks_file: Path) -> None:
    task = load_tasks(tasks_file)[TASK]
    few = AdaptConfig(shots=8, grid={"lr": [1e-2, 1e-3], "router_lr": [0.5, 0.1]})
    shots = {mode: share_out(task, config_of(few), 1, mode) for mode in ("mhr", "mu", "lora", "full")}
    assert all(part == shots["mhr"] for part in shots.values())
    assert shots["mhr"].shots == [*shots["mhr"].train, *shots["mhr"].validation]


def test_a_grid_leaves_out_what_a_mode_does_not_have() -> None:
    few = AdaptConfig(grid={"lr": [1e-2, 1e-3], "router_lr": [0.5, 0.1], "steps": [10]})
    config = config_of(few)
    assert len(grid_points(config, "mhr")) == 4
    assert grid_points(config, "z") == [{"router_lr": 0.5, "steps": 10}, {"router_lr": 0.1, "steps": 10}]
    assert grid_points(config, "mu") == [{"lr": 1e-2, "steps": 10}, {"lr": 1e-3, "steps": 10}]
    assert grid_points(config_of(AdaptConfig()), "mhr") == [{}]
    assert isinstance(grid_points(config, "z")[0]["steps"], int)
    # Routing that is not learnt has no rate, so that points would differ in nothing.
    assert grid_points(config_of(few, "random"), "mhr") == grid_points(config, "mu")


def test_a_point_that_diverges_is_not_chosen(searched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = RoutedTrainer.training_step

    def diverges(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.args.learning_rate in spoiled and self.state.global_step == 3:
            raise DivergedError("the loss is nan at step 4")
        return train(self, *args, **kwargs)

    monkeypatch.setattr(RoutedTrainer, "training_step", diverges)
    spoiled = {1e-2}
    run = searched(grid={"lr": [1e-2, 1e-3]}, eval_every=2)
    lost, kept = run.info["selection"]["trials"]
    assert (lost["score"], lost["step"], lost["diverged"]) == (None, None, "the loss is nan at step 4")
    assert [look["step"] for look in lost["looks"]] == [2]
    assert run.info["selection"]["chosen"] == 1
    assert "diverged" not in kept
    assert run.status == "done"
    assert run.config().train.lr == 1e-3
    alone = searched("alone", lr=1e-3, eval_every=2)
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(alone).values(), strict=True))
    spoiled = {1e-2, 1e-3}
    with pytest.raises(DivergedError, match="no point of the grid trains; with {'lr': 0.01} the loss is nan"):
        searched("none", grid={"lr": [1e-2, 1e-3]})


def test_a_loss_that_is_not_finite_is_the_worst() -> None:
    found = [Validated(0.9, float("nan"), 1), Validated(0.5, 0.3, 2), Validated(0.5, float("inf"), 3)]
    assert not found[0].better_than(found[1])
    assert not found[2].better_than(found[1])
    assert found[1].better_than(found[0])
    assert found[1].better_than(found[2])


def test_equal_scores_are_told_apart_by_one_loss(searched: Any) -> None:
    """A loss that ranks depends on the power of lengths, which a grid may search."""
    run = searched(mode="mu", lr=1e-12, steps=1, mc_loss=1.0, grid={"length_norm": [0.0, 1.0]})
    first, second = (trial["loss"] for trial in run.info["selection"]["trials"])
    assert first == pytest.approx(second, rel=1e-5)


def test_what_is_said_takes_the_place_of_the_grid_of_the_run(settings: Any, tmp_path: Path) -> None:
    grid = {"lr": [1e-3, 1e-4], "router_lr": [0.5, 0.1]}
    config = settings(method="mhr", **{"adapt.grid": grid, "adapt.shots_for": {"*": 3}})
    assert few_shot_settings(config, {"lr": 0.25}).adapt.grid == {"router_lr": [0.5, 0.1]}
    assert few_shot_settings(config, {"full_lr": 0.25}).adapt.grid == {"router_lr": [0.5, 0.1]}
    assert few_shot_settings(config, {"shots": 5}).adapt.shots_for == {}
    assert few_shot_settings(config, {"shots": 5, "shots_for": {"a": 2}}).adapt.shots_for == {"a": 2}
    kept = few_shot_settings(config, {"steps": 7}).adapt
    assert (kept.grid, kept.shots_for) == (grid, {"*": 3})
    both = {"lr": 0.25, "grid": {"lr": [0.1, 0.2]}}
    with pytest.raises(ConfigError, match=r"adapt.lr has no effect beside adapt.grid, which has lr \[0.1, 0.2\]"):
        check_given(both, [("mhr", few_shot_settings(config, both))], ["seq2seq"])


def test_mode_full_searches_its_own_learning_rate(searched: Any) -> None:
    run = searched(mode="full", grid={"lr": [1e-3, 1e-9]}, dev_shots=4, steps=2)
    chosen = run.info["selection"]
    assert run.config().train.lr == chosen["trials"][chosen["chosen"]]["settings"]["lr"]
    assert (run.path / "model").is_dir()


def test_ranking_losses_and_a_schedule_of_their_own(searched: Any) -> None:
    run = searched(mc_loss=1.0, unlikely_loss=1.0, length_norm=0.5, scheduler="constant", warmup=0.0)
    train = run.config().train
    assert (train.mc_loss, train.unlikely_loss, train.length_norm, train.scheduler) == (1.0, 1.0, 0.5, "constant")
    assert {record["lr"] for record in run.metrics()} == {train.lr}
    assert load_model(run.path).length_norm == 0.5
    plain = searched("plain", scheduler="constant", warmup=0.0)
    assert run.metrics()[0]["loss"] > plain.metrics()[0]["loss"]


@pytest.mark.parametrize("model", ["t5", "llama", "bert"])
def test_every_kind_of_model_is_searched_with_ranking_losses(
    model: str, settings: Callable[..., Any], tmp_path: Path
) -> None:
    heads = {"train.precision": "bf16", "n_heads": 2, "steps": 2}
    source = pretrain(settings(model, **heads), str(tmp_path / "source"), progress=False)
    losses = {} if model == "bert" else {"mc_loss": 1.0, "unlikely_loss": 1.0}
    few: dict[str, Any] = {**losses, "grid": {"router_lr": [0.5, 0.1]}, "steps": 2}
    (run,) = adapt(str(source.path), [TASK], mode="mhr", output=str(tmp_path / "out"), progress=False, **few)
    assert len(run.info["selection"]["trials"]) == 2
    assert all(0 < trial["loss"] < 100 for trial in run.info["selection"]["trials"])


def test_shots_by_task() -> None:
    few = AdaptConfig(shots=32, shots_for={"boolq": 4, "*wino*": 50})
    assert [shots_of(few, name) for name in ("boolq", "super_winogrande", "rte")] == [4, 50, 32]


def test_a_choice_that_begins_another_is_noted(source: Source, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    rows = [
        {"task": "count", "input": "x" * n, "targets": str(n), "choices": ["1", "10", "2"], "split": "train"}
        for n in (1, 2, 10, 1)
    ]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common: dict[str, Any] = {"mode": "mu", "tasks_path": str(tasks), "shots": 2, "steps": 1, "progress": False}
    adapt(str(source("mhr").path), ["count"], output=str(tmp_path / "out"), mc_loss=1.0, **common)
    (line,) = json.loads((tmp_path / "out" / "adapt.json").read_text())["notes"]
    assert "task 'count': choice '1' is the beginning of choice '10'" in line
    adapt(str(source("mhr").path), ["count"], output=str(tmp_path / "plain"), **common)
    assert json.loads((tmp_path / "plain" / "adapt.json").read_text())["notes"] == []


def test_choices_that_are_the_same_once_cut_leave_nothing_behind(source: Source, tmp_path: Path) -> None:
    """Also where only a point of the grid ranks them."""
    tasks = tmp_path / "tasks.jsonl"
    long = ["a" * 90 + end for end in "12"]
    rows = [{"task": "t", "input": f"{n}", "targets": long[n % 2], "choices": long, "split": "train"} for n in range(8)]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common: dict[str, Any] = {"mode": "mu", "tasks_path": str(tasks), "shots": 4, "steps": 1, "progress": False}
    for few in ({"mc_loss": 1.0}, {"grid": {"unlikely_loss": [0.0, 1.0]}}):
        with pytest.raises(DataError, match="are the same in their first"):
            adapt(str(source("mhr").path), ["t"], output=str(tmp_path / "out"), **few, **common)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("few", "error", "said"),
    [
        (
            {"grid": {"lrr": [1.0]}},
            ConfigError,
            "grid has 'lrr', which is no hyperparameter of a grid: did you mean 'lr'",
        ),
        ({"grid": {"lr": [1e-3, 1e-3]}}, ConfigError, "expected each value once"),
        ({"grid": {"lr": []}}, ConfigError, "at least one"),
        ({"grid": {"lr": [-1.0]}}, ConfigError, "grid has an invalid value: lr is -1.0"),
        ({"grid": {"steps": [1.5]}}, ConfigError, "steps is 1.5, expected an integer"),
        (
            {"shots": 23, "dev_shots": 2, "select": "best"},
            DataError,
            "fewer than the 23 shots and 2 dev shots asked for: use --shots 22",
        ),
        ({"shots": 1, "grid": {"lr": [1.0, 2.0]}}, DataError, "no part can be split off"),
        ({"shots_for": {"next-frist": 4}}, TaskError, "unknown task 'next-frist'.*'next-first'"),
        ({"shots_for": {TASK: 0}}, ConfigError, "shots_for 'next-first' is 0"),
        (
            {"protocol": "papper"},
            ConfigError,
            "protocol is 'papper', expected one of held-out, paper: did you mean 'paper'",
        ),
        ({"protocol": "paper", "dev_shots": 3}, ConfigError, "leave dev and dev_shots out"),
        ({"select": "last", "patience": 2}, ConfigError, "patience selects the best step, but select is 'last'"),
        ({"select": "frist"}, ConfigError, "select is 'frist'"),
        ({"patience": 0}, ConfigError, "patience is 0"),
        ({"dev_shots": 2}, ConfigError, "dev_shots is 2, but nothing is chosen: add grid"),
        ({"dev": "x.jsonl"}, ConfigError, "dev is x.jsonl, but nothing is chosen: add grid"),
        ({"dev": "x.jsonl", "dev_shots": 3}, ConfigError, "leave one out"),
        ({"seeds": [3, 3]}, ConfigError, "expected each seed once"),
        ({"mc_loss": -1.0}, ConfigError, "mc_loss is -1"),
        ({"sheduler": "linear"}, ConfigError, "unknown few-shot setting 'sheduler': did you mean 'scheduler'"),
        ({"template": "gleu"}, ConfigError, "no templates called 'gleu'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    few: dict[str, Any], error: type[MhrError], said: str, source: Source, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said) as caught:
        adapt(str(source("mhr").path), [TASK], mode="mhr", output=str(tmp_path / "out"), progress=False, **few)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "few", [{}, {"eval_every": 1, "patience": 1}, {"grid": {"lr": [1e-2, 1e-3]}}, {"steps": 0}], ids=str
)
def test_the_adapter_tells_the_step_that_it_is_of(few: dict[str, Any], searched: Any) -> None:
    run = searched(**few)
    assert read_adapter(run.adapter).info["step"] == run.info["steps"]
