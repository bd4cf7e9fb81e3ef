"""Evaluation of whole collections: what is measured how, averages, counts, and what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mhr.data import Example, Task, TaskCollection
from mhr.errors import ConfigError, DataError, MhrError, TaskError
from mhr.evaluation import EvaluationResult, evaluate, generate_answers, rank_choices
from mhr.evaluation.metrics import rouge_l
from mhr.evaluation.result import average
from tests.evaluation.conftest import Ask


@pytest.fixture
def collection(examples: list[Example]) -> TaskCollection:
    """alpha and beta have choices, gamma is free generation; alpha and gamma share a category."""
    tasks = []
    for name, category in (("alpha", "words"), ("beta", "numbers"), ("gamma", "words")):
        own = [e for e in examples if e.task == name]
        if name == "gamma":
            own = [dataclasses.replace(e, choices=()) for e in own]
        train = [dataclasses.replace(e, targets=("w1",)) for e in own]
        tasks.append(Task(name, train=train, test=own, category=category, choices=own[0].choices))
    return TaskCollection(tasks, "made up")


def run(ask: Ask, collection: TaskCollection, name: str = "t5", **settings: object) -> EvaluationResult:
    return evaluate(ask(name), collection, max_target_length=8, progress=False, **settings)  # type: ignore[arg-type]


def test_measures_follow_from_the_answers(ask: Ask, collection: TaskCollection) -> None:
    loaded, result = ask("t5"), run(ask, collection)
    ranked = rank_choices(loaded, collection["beta"].test)
    right = [e.choices[r.best] in e.targets for e, r in zip(collection["beta"].test, ranked, strict=True)]
    generated = generate_answers(loaded, collection["gamma"].test, max_new_tokens=8)
    rouge = [rouge_l(g.text, e.targets) for e, g in zip(collection["gamma"].test, generated, strict=True)]
    assert list(result.tasks) == ["alpha", "beta", "gamma"]
    assert result.tasks["beta"]["accuracy"] == result.tasks["beta"]["score"] == sum(right) / 3
    assert result.tasks["gamma"]["rouge_l"] == pytest.approx(sum(rouge) / 3)
    assert result.tasks["gamma"]["score"] == result.tasks["gamma"]["exact_match"]
    assert "accuracy" not in result.tasks["gamma"]
    assert "rouge_l" not in result.tasks["beta"]
    for name, measures in result.tasks.items():
        assert measures["n"] == 3
        assert measures["majority"] == sum("w1" in e.targets for e in collection[name].test) / 3


def test_averages(ask: Ask, collection: TaskCollection) -> None:
    result = run(ask, collection)
    score = {name: measures["score"] for name, measures in result.tasks.items()}
    words = (score["alpha"] + score["gamma"]) / 2
    assert result.categories["words"]["score"] == pytest.approx(words)
    assert result.categories["words"]["tasks"] == 2
    assert result.categories["words"]["accuracy"] == result.tasks["alpha"]["accuracy"]
    assert result.mean["score"] == pytest.approx(sum(score.values()) / 3)
    assert result.by_category["score"] == pytest.approx((words + score["beta"]) / 2)
    assert average([{"a": 1.0, "n": 3, "name": "x"}, {"a": 0.0, "b": 0.5, "m": None}]) == {"a": 0.5, "b": 0.5}


def test_metrics_that_are_asked_for(ask: Ask, collection: TaskCollection) -> None:
    words = run(ask, collection, metrics=["exact_match"])
    assert set(words.tasks["beta"]) == {"category", "n", "metric", "score", "exact_match", "majority"}
    both = run(ask, collection, metrics=["accuracy", "rouge_l"])
    assert {"accuracy", "rouge_l"} <= set(both.tasks["alpha"])
    assert both.tasks["alpha"]["score"] == both.tasks["alpha"]["accuracy"]
    assert both.truncated["examples"] == 9  # ranked and generated for, counted once
    only = run(ask, collection, metrics=["accuracy"])
    assert only.skipped == {"gamma": "has no choices to rank"}
    with pytest.raises(
        ConfigError,
        match="metrics has 'rouge', expected one of accuracy, exact_match, rouge_l, .*: did you mean 'rouge_l'",
    ):
        run(ask, collection, metrics=["rouge"])


def test_metrics_that_the_data_name(ask: Ask, collection: TaskCollection) -> None:
    alpha, gamma = collection["alpha"], collection["gamma"]
    pair = [dataclasses.replace(e, choices=("w1", "w2 w3"), targets=("w1",)) for e in alpha.test]
    named = [
        dataclasses.replace(alpha, test=pair, metrics=("f1", "accuracy")),
        dataclasses.replace(gamma, metrics=("bleu", "nist")),
    ]
    result = run(ask, TaskCollection(named, "made up"))
    assert result.tasks["alpha"]["metric"] == "f1"
    assert result.tasks["alpha"]["score"] == result.tasks["alpha"]["f1"]
    assert {"bleu", "nist"} <= result.tasks["gamma"].keys()
    assert {"scikit-learn", "sacrebleu", "nltk"} <= result.versions.keys()
    assert result.mean["score"] == pytest.approx((result.tasks["alpha"]["f1"] + result.tasks["gamma"]["bleu"]) / 2)
    asked = run(ask, TaskCollection(named, "made up"), metrics=["rouge_l"])
    assert {scores["metric"] for scores in asked.tasks.values()} == {"rouge_l"}
    with pytest.raises(DataError, match="metric 'pearson' does not fit task 'alpha' .*: it needs numbers as targets"):
        run(ask, TaskCollection(named, "made up"), metrics=["accuracy", "pearson"])


def test_an_encoder_skips_what_it_cannot_rank(ask: Ask, collection: TaskCollection) -> None:
    result = run(ask, collection, "bert")
    assert list(result.tasks) == ["alpha", "beta"]
    assert result.skipped == {"gamma": "has no choices to rank, and an encoder cannot generate"}
    with pytest.raises(DataError, match="nothing of made up can be evaluated: has no choices to rank"):
        run(ask, collection.select(["gamma"]), "bert")


def test_mixed_batches_are_as_tasks_alone(ask: Ask, collection: TaskCollection) -> None:
    for name in ("t5", "gpt2", "bert"):
        together = run(ask, collection, name)
        for task in together.tasks:
            alone = run(ask, collection.select([task]), name)
            assert alone.tasks[task] == together.tasks[task]


def test_predictions_keep_the_order_of_the_examples(ask: Ask, collection: TaskCollection, tmp_path: Path) -> None:
    result = run(ask, collection)
    assert [p.id for p in result.predictions if p.task == "gamma"] == [e.id for e in collection["gamma"].test]
    path = result.write_predictions(tmp_path / "predictions.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 9
    first = lines[0]
    assert first["task"] == "alpha"
    assert first["how"] == "ranking"
    assert first["answer"] == first["choices"][first["scores"].index(max(first["scores"]))]


def test_truncation_is_counted(ask: Ask, collection: TaskCollection) -> None:
    lengths = [len(e.input.split()) + 1 for task in collection.values() for e in task.test]
    result = run(ask, collection, max_input_length=5)
    tasks = result.truncated.pop("tasks")
    assert result.truncated == {"examples": 9, "inputs": sum(n > 5 for n in lengths), "choices": 0, "targets": 0}
    assert sum(counts["inputs"] for counts in tasks.values()) == result.truncated["inputs"]
    assert run(ask, collection).truncated["inputs"] == 0


def test_lengths_are_capped_to_what_the_model_takes(ask: Ask, collection: TaskCollection) -> None:
    assert ask("t5").lengths() == (512, 128)
    assert ask("bert").lengths() == (64, 64)
    assert ask("gpt2").lengths(100, 10) == (54, 10)
    assert ask("gpt2").lengths() == (32, 32)  # both share 64 positions
    assert dataclasses.replace(ask("t5"), trained_with=(40, 9)).lengths() == (40, 9)
    assert dataclasses.replace(ask("t5"), trained_with=(40, 9)).lengths(50) == (50, 9)
    with pytest.raises(ConfigError, match="max_target_length is 64, but the tiny gpt2 takes 64 tokens with the input"):
        ask("gpt2").lengths(10, 64)
    with pytest.raises(ConfigError, match="max_input_length is 1, expected at least 2 tokens"):
        ask("t5").lengths(1)


def test_split_and_limit(ask: Ask, collection: TaskCollection) -> None:
    assert [m["n"] for m in run(ask, collection, limit=2).tasks.values()] == [2, 2, 2]
    assert run(ask, collection.select(["gamma"]), split="train").predictions[0].targets == ("w1",)
    with pytest.raises(ConfigError, match="limit is 0"):
        run(ask, collection, limit=0)
    with pytest.raises(ConfigError, match="split is 'dev', expected one of test, train"):
        run(ask, collection, split="dev")


def test_tasks_that_the_bank_does_not_know(ask: Ask, collection: TaskCollection) -> None:
    task = collection["alpha"]
    new = Task("new", task.train, [dataclasses.replace(e, task="new") for e in task.test], choices=task.choices)
    strange = TaskCollection([new], "made up")
    assert run(ask, strange).tasks["new"]["n"] == 3
    with pytest.raises(TaskError, match="unknown task 'new'"):
        run(ask, strange, unseen="error")


def test_a_task_without_examples_is_skipped(ask: Ask, collection: TaskCollection) -> None:
    more = TaskCollection([*collection.values(), Task("empty")], "made up")
    assert run(ask, more).skipped == {"empty": "no test examples"}


def test_the_result_is_written_whole(ask: Ask, collection: TaskCollection, tmp_path: Path) -> None:
    result = run(ask, collection)
    assert json.loads(result.write(tmp_path / "result.json").read_text()) == json.loads(result.to_json())
    written = json.loads(result.to_json())
    assert written["model"] == "the tiny t5"
    assert written["source"] == "made up"
    assert written["settings"]["max_target_length"] == 8
    assert {"mhr", "torch", "transformers"} <= written["versions"].keys()
    assert "predictions" not in written
    with pytest.raises(MhrError, match="cannot write"):
        result.write(tmp_path / "missing" / "result.json")


def test_progress_bar_is_on_stderr(ask: Ask, collection: TaskCollection, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(ask("t5"), collection, max_target_length=8)
    out, err = capsys.readouterr()
    assert out == ""
    assert "9/9" in err
