"""Validation while pretraining: which examples, what is measured, what stops and what is kept, and that training is as without."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer

from mhr.adapters import load_checkpoint, read_adapter
from mhr.data import Example, Task, TaskCollection
from mhr.data.collators import Seq2SeqCollator
from mhr.errors import ConfigError, DataError, TrainingError
from mhr.evaluation import choice_scorer, evaluate, load_model
from mhr.objectives import make_objective
from mhr.runs import RunFolder, load_config
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import read_tasks
from mhr.runs.train_settings import TrainConfig
from mhr.training import pretrain
from mhr.training.signals import Interrupted
from mhr.training.trainer import RoutedTrainer
from mhr.training.validation import BestWeights, Validator, hold_validation, untouched_generators
from tests.chat_templates import GEMMA
from tests.conftest import TRAINING
from tests.forked import pretrained_by_two

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def split_file(tmp_path_factory: pytest.TempPathFactory, tasks_file: Path) -> Path:
    """The training tasks of `tasks_file`, the last eight training examples of each as a validation split."""
    path = tmp_path_factory.mktemp("split") / "tasks.jsonl"
    rows = [json.loads(line) for line in tasks_file.read_text().splitlines()]
    seen: dict[str, int] = {}
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            if row["task"] not in TRAINING:
                continue
            seen[row["task"]] = n = seen.get(row["task"], 0) + 1
            row["split"] = "validation" if 16 < n <= 24 else row["split"]
            file.write(json.dumps({k: v for k, v in row.items() if k != "held_out"}) + "\n")
    return path


def run_of(config: RunConfig, folder: Path, **more: Any) -> RunFolder:
    return pretrain(config, str(folder), progress=False, scorer=choice_scorer, **more)


def test_rows_of_a_split_stay_and_others_are_drawn_out_of_training(settings: Make, split_file: Path) -> None:
    config = settings(eval_every=2, eval_rows=3)
    tasks = read_tasks(str(split_file), config.data)
    held = hold_validation(tasks, "seq2seq", config.train)
    assert {task: len(part) for task, part in held.examples.items()} == dict.fromkeys(TRAINING, 3)
    assert all(held.tasks[name].train == tasks[name].train for name in TRAINING)
    assert "those of 3 tasks are of their validation splits" in held.note

    tasks = read_tasks(config.tasks, config.data).training()
    held = hold_validation(tasks, "seq2seq", config.train)
    for name, part in held.examples.items():
        assert len(part) == 3
        assert sorted(e.id for e in [*held.tasks[name].train, *part]) == sorted(e.id for e in tasks[name].train)
        assert not {e.input for e in part} & {e.input for e in held.tasks[name].train}
    assert "taken out of their training examples by seed 42" in held.note
    assert hold_validation(tasks, "seq2seq", config.train) == held
    other = hold_validation(tasks, "seq2seq", dataclasses.replace(config.train, seed=1))
    assert other.examples != held.examples


def test_validation_examples_that_cannot_be_encoded_are_found_before_a_step(settings: Make, tmp_path: Path) -> None:
    def row(n: int, split: str, role: str) -> str:
        said = [
            {"role": role, "content": "q"},
            {"role": "user", "content": str(n)},
            {"role": "assistant", "content": "a"},
        ]
        return json.dumps({"task": "talk", "split": split, "messages": said[role == "none" :]}) + "\n"

    file, template = tmp_path / "talk.jsonl", tmp_path / "t.jinja"
    shown = [row(n, split, "none") for split in ("train", "validation", "test") for n in range(6)]
    file.write_text("".join([*shown, row(6, "validation", "system")]))
    template.write_text(GEMMA)
    chats = {"data.chat_template": str(template), "max_input_length": 128}
    config = settings("llama", tasks=str(file), eval_every=2, **chats)
    with pytest.raises(DataError, match="System role not supported"):
        run_of(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("held", ["train", "validation"])
@pytest.mark.parametrize(("model", "said"), [("t5", "are the same in their first"), ("bert", "room")])
def test_choices_that_cannot_be_ranked_are_found_before_a_step(
    model: str, said: str, held: str, settings: Make, tmp_path: Path
) -> None:
    def row(n: int, split: str, *choices: str) -> str:
        shown = {"task": "t", "input": str(n), "targets": choices[0], "choices": choices, "split": split}
        return json.dumps(shown) + "\n"

    file = tmp_path / "tasks.jsonl"
    shown = [row(n, split, "a", "b") for split in ("train", "validation", "test") for n in range(9)]
    file.write_text("".join([*shown, row(9, held, "a" * 40 + "1", "a" * 40 + "2")]))
    ranking = {"train.mc_loss": 1.0} if model == "t5" else {"head": "rank"}
    config = settings(model, tasks=str(file), eval_every=2, **ranking)
    with pytest.raises(DataError, match=said):
        run_of(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_small_task_keeps_four_fifths_and_none_at_all_is_an_error() -> None:
    train = TrainConfig(eval_every=1)
    tasks = TaskCollection(
        [Task(f"of {n}", [Example(f"of {n}", f"input {i}", ("a",), id=str(i)) for i in range(n)]) for n in (4, 11)]
    )
    held = hold_validation(tasks, "causal", train)
    assert {task: len(part) for task, part in held.examples.items()} == {"of 11": 2}
    assert "1 tasks have none, such as 'of 4'" in held.note
    assert [len(task.train) for task in held.tasks.values()] == [4, 9]
    with pytest.raises(DataError, match="none of its 1 tasks has a validation split or 5 training examples"):
        hold_validation(tasks.select(["of 4"]), "causal", train)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep_best": True}, r"keep_best is True, but nothing is validated: set eval_every"),
        ({"early_stopping": 2}, r"early_stopping is 2, but nothing is validated"),
        ({"eval_rows": 2}, r"eval_rows is 2, but nothing is validated"),
        ({"eval_every": 2, "best_by": "loss"}, r"best_by is 'loss', but nothing depends on the best validation"),
        ({"eval_every": 2, "keep_best": True, "best_by": "scores"}, r"did you mean 'score'"),
        (
            {"eval_every": 2, "keep_best": True, "switch_to_mu_at": 4},
            r"keep_best is True, but the run ends as the average",
        ),
        ({"eval_every": -1}, r"eval_every is -1, expected an integer of at least 0"),
        ({"warmup": 2.5}, r"warmup is 2.5, expected a fraction of all steps below 1 or an integer number of steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Make, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**given)


def test_best_by_score_needs_choices_and_something_that_scores(settings: Make, tmp_path: Path) -> None:
    config = settings(eval_every=2, keep_best=True, best_by="score")
    with pytest.raises(ConfigError, match="best_by is 'score', but nothing was given that scores"):
        pretrain(config, str(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()
    examples = {"a": [Example("a", "x", ("y",))]}
    with pytest.raises(ConfigError, match="best_by is 'score', but no task has choices to rank"):
        Validator(examples, Seq2SeqCollator(ByT5Tokenizer()), config.train, lambda given: [0.0] * len(given))


@pytest.mark.parametrize("method", ["mhr", "adamix-lora"])
def test_a_validated_run_has_the_losses_of_one_that_is_not(
    settings: Make, split_file: Path, tmp_path: Path, method: str
) -> None:
    """To the bit, with dropout, noise or drawn skills, which take random numbers."""
    more: dict[str, Any] = {"method": method, "tasks": str(split_file), "adapter.dropout": 0.1, "steps": 6}
    more |= {"model_config": {"dropout_rate": 0.1}, "max_input_length": 6}  # some inputs are truncated
    plain = run_of(settings(**more), tmp_path / "plain")
    validated = run_of(settings(**more, eval_every=1), tmp_path / "validated")
    assert plain.metrics() == validated.metrics()
    assert plain.info["truncated"] == validated.info["truncated"] != {}
    assert len(validated.validations()) == 6
    assert not plain.validations()
    ours, theirs = (read_adapter(run.adapter).tensors for run in (plain, validated))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


AVERAGES: list[dict[str, Any]] = [
    {"switch_to_mu_at": 3},
    {"anneal_to_mu": 1},
    {"anneal_to_mu": 4},
    {"anneal_to_mu": 1, "anneal_by": "quarter"},
    {"anneal_to_mu": 4, "anneal_by": "quarter"},
]


@pytest.mark.parametrize(
    ("model", "kind", "flags"),
    [
        *((model, kind, {}) for model, kind in [("t5", "seq2seq"), ("llama", "causal"), ("bert", "encoder")]),
        *(("t5", "seq2seq", flags) for flags in AVERAGES),
    ],
)
def test_what_is_found_is_what_the_result_scores(
    settings: Make, split_file: Path, tmp_path: Path, model: str, kind: str, flags: dict[str, Any]
) -> None:
    more: dict[str, Any] = {"label_smoothing": 0.1, "adapter.dropout": 0.2}  # neither takes part in validation
    more |= {"lr": 0.1, "router_lr": 1.0, **flags}  # so that tasks differ from their average
    config = settings(model, tasks=str(split_file), eval_every=4, steps=6, **more)
    run = run_of(config, tmp_path / "run")
    assert sorted(run.validations()) == [4, 6]  # the end, too
    found = run.validations()[6]
    tasks = read_tasks(str(split_file), config.data)
    loaded = load_model(run.path)
    loaded.model.mhr.set_tasks(list(tasks))  # an average is one adapter, which is stored as one task
    objective = make_objective(kind, config.train, loaded.heads)
    collator = objective.collator(loaded.tokenizer, config.data.max_input_length, config.data.max_target_length)
    for task in tasks.values():
        with torch.no_grad():
            losses = objective(loaded.model, collator(task.validation))
        assert found["losses"][task.name] == pytest.approx(float(losses.sums.sum() / losses.counts.sum()), rel=1e-4)
    judged = TaskCollection([dataclasses.replace(task, test=task.validation) for task in tasks.values()])
    scores = evaluate(loaded, judged, progress=False).tasks
    assert found["scores"] == {task: measures["accuracy"] for task, measures in scores.items()}
    assert found["loss"] == pytest.approx(sum(found["losses"].values()) / 3)
    assert found["score"] == pytest.approx(sum(found["scores"].values()) / 3)
    assert run.info["validation"] == dict.fromkeys(TRAINING, 8)


def validation_losses(run: RunFolder) -> dict[int, float]:
    return {step: found["loss"] for step, found in run.validations().items()}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """Makes validations find given losses, by step."""

    def tell(losses: dict[int, float]) -> None:
        whole = Validator.__call__

        def found(self: Validator, trainer: RoutedTrainer) -> Any:
            real = whole(self, trainer)
            return dataclasses.replace(real, losses=dict.fromkeys(real.losses, losses[real.step]))

        monkeypatch.setattr(Validator, "__call__", found)

    return tell


CURVE = {1: 5.0, 2: 3.0, 3: 4.0, 4: 4.0, 5: 2.0, 6: 6.0, 7: 6.0, 8: 6.0}


@pytest.mark.parametrize("method", ["mhr", "full"])
def test_the_best_step_is_the_result(
    settings: Make, tmp_path: Path, told: Callable[[dict[int, float]], None], method: str
) -> None:
    more: dict[str, Any] = {"method": method, "eval_every": 1, "lr": 1e-3}
    told(CURVE)
    run = run_of(settings(**more, keep_best=True), tmp_path / "best")
    assert run.info["best"] == {
        "step": 5,
        "loss": 2.0,
        "score": run.validations()[5]["score"],
        "by": "loss",
        "kept": True,
    }
    assert (run.info["steps"], run.status) == (8, "done")
    assert not (run.path / "best").exists()
    last = run_of(settings(**more), tmp_path / "last")
    assert last.info["best"]["step"] == 5
    assert last.info["best"]["kept"] is False
    ended = run_of(settings(**more, early_stopping=3), tmp_path / "ended")
    assert ended.info["steps"] == 8  # two that are no better, a better one, three that are not
    models = [load_model(one.path).model.state_dict() for one in (run, last)]
    assert any(not torch.equal(models[0][name], models[1][name]) for name in models[0])
    if method == "mhr":
        assert read_adapter(run.adapter).info["step"] == 5


def test_the_kept_weights_are_those_that_the_best_step_had(
    settings: Make, tmp_path: Path, told: Callable[[dict[int, float]], None]
) -> None:
    told(CURVE)
    config = settings(eval_every=1, keep_best=True, save_every=5, keep_checkpoints=9)
    run = run_of(config, tmp_path / "run")
    then = read_adapter(run.checkpoints / "checkpoint-5").tensors
    kept = read_adapter(run.adapter).tensors
    assert all(torch.equal(then[name], kept[name]) for name in then)
    load_checkpoint(run.adapter)


def test_early_stopping_ends_after_validations_without_a_better_one(
    settings: Make, tmp_path: Path, told: Callable[[dict[int, float]], None]
) -> None:
    told(CURVE)
    run = run_of(settings(eval_every=1, early_stopping=2, keep_best=True), tmp_path / "run")
    assert (run.status, run.info["steps"], run.info["best"]["step"]) == ("done", 4, 2)
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4]


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_an_interrupted_run_goes_on_to_the_same_end(
    settings: Make, tmp_path: Path, told: Callable[[dict[int, float]], None], monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Also from the checkpoint of the very step where it stopped early, before its result was written."""
    told(CURVE)
    config = settings(eval_every=1, early_stopping=2, keep_best=True, save_every=3, model_config={"dropout_rate": 0.1})
    whole = run_of(config, tmp_path / "whole")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            if stop < 4:
                step = RoutedTrainer.training_step

                def interrupted(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
                    if self.state.global_step == stop - 1:
                        os.kill(os.getpid(), signal.SIGINT)
                    return step(self, *args, **kwargs)

                patch.setattr(RoutedTrainer, "training_step", interrupted)
            else:
                patch.setattr(
                    "mhr.training.pretraining.save_result", lambda *a, **k: signal.raise_signal(signal.SIGINT)
                )
            with pytest.raises(KeyboardInterrupt) as caught:
                run_of(config, tmp_path / "cut")
            assert (caught.type is Interrupted) == (stop < 4)
    finally:
        signal.signal(signal.SIGINT, before)
    cut = run_of(config, tmp_path / "cut", resume=True)
    assert cut.info["resumed_from"] == f"checkpoint-{stop}"
    assert (cut.info["steps"], cut.info["best"]) == (whole.info["steps"], whole.info["best"])
    assert cut.metrics() == whole.metrics()
    assert cut.validations() == whole.validations()
    ours, theirs = (read_adapter(run.adapter).tensors for run in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_of_best_steps_stay_while_a_checkpoint_may_need_them(tmp_path: Path) -> None:
    best = BestWeights(tmp_path / "best", tmp_path / "checkpoints")
    for step in (2, 4, 6, 8):
        best.of(step).mkdir(parents=True)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_global_step": 4}))
    best.forget(8)
    assert sorted(path.name for path in best.folder.iterdir()) == ["step-4", "step-8"]


def test_a_validation_loss_that_is_not_finite_stops_the_run(
    settings: Make, tmp_path: Path, told: Callable[[dict[int, float]], None]
) -> None:
    told({2: float("nan")})
    with pytest.raises(TrainingError, match="validation loss of 'next-last'.* is not finite after step 2"):
        run_of(settings(eval_every=2), tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").status == "failed"


def test_two_processes_validate_as_one(settings: Make, tmp_path: Path) -> None:
    more: dict[str, Any] = {"steps": 4, "eval_every": 2, "keep_best": True, "eval_rows": 3, "save_every": 4, "lr": 1e-3}
    two = pretrained_by_two(settings(batch_size=4, **more), tmp_path / "two", scorer=choice_scorer)
    one = run_of(settings(batch_size=8, **more), tmp_path / "one")
    assert sorted(two.validations()) == sorted(one.validations()) == [2, 4]
    for step, found in one.validations().items():
        assert two.validations()[step]["losses"] == pytest.approx(found["losses"], rel=1e-4)
        assert two.validations()[step]["scores"] == found["scores"]
    assert two.info["best"]["step"] == one.info["best"]["step"]


@pytest.mark.parametrize("method", ["mhr", "adamix-lora"])
def test_checkpointing_and_mixed_precision_go_with_it(settings: Make, tmp_path: Path, method: str) -> None:
    more: dict[str, Any] = {"method": method, "steps": 2, "eval_every": 1, "model": "llama"}
    whole = run_of(settings(**more), tmp_path / "whole")
    again = run_of(settings(**more, gradient_checkpointing=True), tmp_path / "again")
    mixed = run_of(settings(**more, precision="bf16"), tmp_path / "mixed")
    assert validation_losses(again) == pytest.approx(validation_losses(whole), rel=1e-5)
    assert validation_losses(mixed) == pytest.approx(validation_losses(whole), rel=0.05)
    assert validation_losses(mixed) != validation_losses(whole)


def test_generators_are_left_as_they_were() -> None:
    import random

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with untouched_generators():
        torch.rand(3), np.random.rand(3), random.random()
    found = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    assert found == (torch.rand(1).item(), np.random.rand(), random.random())


def test_an_adaptation_of_a_validated_run_is_as_of_any_other(settings: Make, tmp_path: Path) -> None:
    from mhr.few_shot import adapt

    run = run_of(settings(steps=2, eval_every=1, keep_best=True, early_stopping=1), tmp_path / "run")
    (made,) = adapt(str(run.path), ["swap-last"], mode="z", output=str(tmp_path / "adapted"), progress=False)
    assert made.status == "done"
    assert not made.validations()


def test_old_settings_load_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("train: {warmup: 100, optimizer: adafactor}\n")
    config = load_config(tmp_path / "old.yaml")
    assert (config.train.warmup_steps, config.train.optimizer, config.train.eval_every) == (100, "adafactor", 0)
    assert load_config(**{"train.warmup": 0.06, "train.steps": 1000}).train.warmup_steps == 60
