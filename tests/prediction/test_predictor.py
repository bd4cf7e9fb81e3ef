"""Texts in, answers out: mixed tasks as each alone, choices ranked, and what has no answer refused before anything is answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mhr
from mhr.data import Example
from mhr.errors import CheckpointError, ConfigError, DataError, MhrError, TaskError
from mhr.evaluation import generate_answers, load_model, rank_choices
from mhr.prediction import PredictConfig, answer_into, files
from tests.prediction.conftest import Predict

TASKS = ["alpha", "beta", "gamma"]
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w1 w2 w3", "w1 w2 w3", "w12 w13"]
MIXED = [TASKS[i % 3] for i in range(len(TEXTS))]


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_mixed_tasks_are_answered_as_each_alone(predictor: Predict, name: str) -> None:
    model = predictor(name)
    together = model.predict(TEXTS, MIXED, max_new_tokens=6)
    alone = [model.predict([text], task, max_new_tokens=6)[0] for text, task in zip(TEXTS, MIXED, strict=True)]
    assert together == alone
    assert together == model.predict(TEXTS, MIXED, max_new_tokens=6, batch_size=2)
    assert len(set(model.predict([TEXTS[0]] * 3, TASKS, max_new_tokens=6))) > 1, "the task decides"


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_answers_are_those_of_evaluation(predictor: Predict, name: str) -> None:
    model = predictor(name)
    examples = [Example(task, text, ("",)) for task, text in zip(MIXED, TEXTS, strict=True)]
    read, _ = model.loaded.lengths()
    expected = generate_answers(model.loaded, examples, max_input_length=read, max_new_tokens=6, unseen="error")
    assert model.predict(TEXTS, MIXED, max_new_tokens=6) == [g.text for g in expected]


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_choices_are_ranked(predictor: Predict, name: str) -> None:
    model = predictor(name)
    choices = ("w1", "w2 w3", "w4 w5 w6")
    examples = [Example(task, text, choices[:1], choices) for task, text in zip(MIXED, TEXTS, strict=True)]
    read, written = model.loaded.lengths()
    expected = rank_choices(model.loaded, examples, max_input_length=read, max_target_length=written)
    assert model.predict(TEXTS, MIXED, choices) == [choices[r.best] for r in expected]
    answers = model.answer(model.ask(TEXTS, "alpha", PredictConfig(choices=list(choices))))
    assert {a.how for a in answers} == {"ranking"}
    assert all(a.choices == choices and a.text == choices[a.scores.index(max(a.scores))] for a in answers)


def test_rows_to_rank_and_to_generate_for_may_be_mixed(predictor: Predict) -> None:
    model = predictor("t5")
    words = Example("alpha", "w1 w2", ("",), id="a")
    ranked = Example("beta", "w1 w2", ("w3",), ("w3", "w4"), id="b")
    config = PredictConfig(max_new_tokens=6)
    together = model.answer([words, ranked, words], config)
    assert [a.how for a in together] == ["generation", "ranking", "generation"]
    alone = [model.answer([example], config)[0] for example in (words, ranked, words)]
    assert [a.text for a in together] == [a.text for a in alone]


def test_a_stream_of_several_answers_is_what_they_are(predictor: Predict) -> None:
    model = predictor("llama")
    examples = model.ask(TEXTS, "beta", PredictConfig())
    pieces: list[str] = []
    config = PredictConfig(max_new_tokens=6)
    streamed = model.answer(examples, config, stream=pieces.append)
    assert [a.text for a in streamed] == [a.text for a in model.answer(examples, config)]
    assert "".join(pieces) == "".join(a.text for a in streamed)


def test_a_seed_draws_anew_for_each_streamed_answer(predictor: Predict) -> None:
    model = predictor("llama")
    examples = model.ask(TEXTS[:1] * 4, "beta", PredictConfig())
    config = PredictConfig(max_new_tokens=6, temperature=1.0, seed=1)
    streamed = [a.text for a in model.answer(examples, config, stream=lambda piece: None)]
    assert len(set(streamed)) == 4
    alone = [model.answer([e], config, first=i, stream=lambda piece: None)[0] for i, e in enumerate(examples)]
    assert [a.text for a in alone] == streamed


def test_one_new_token_and_truncated_inputs(predictor: Predict) -> None:
    model = predictor("llama")
    (one,) = model.answer(model.ask(["w1 w2 w3 w4 w5"], "beta", PredictConfig()), PredictConfig(max_new_tokens=1))
    assert len(one.text.split()) <= 1
    assert not one.truncated
    (cut,) = model.answer(
        model.ask(["w1 w2 w3 w4 w5"], "beta", PredictConfig()), PredictConfig(max_new_tokens=1, max_input_length=3)
    )
    assert cut.truncated


def test_a_task_that_is_unknown_or_missing_is_refused(predictor: Predict) -> None:
    model = predictor("t5")
    for tasks in ("alhpa", ["alpha", "alhpa"]):
        with pytest.raises(TaskError, match="unknown task 'alhpa' of the tiny t5: did you mean 'alpha'"):
            model.predict(["w1", "w2"], tasks)
    with pytest.raises(TaskError, match="no task is named: give one .*known: 'alpha', 'beta', 'gamma'"):
        model.predict(["w1"])
    uniform = model.predict(["w1 w2 w3"], unseen="uniform", max_new_tokens=6)
    with model.loaded.routing(["no such task"]):
        assert uniform == model.predict(["w1 w2 w3"], "no such task", unseen="uniform", max_new_tokens=6)


def test_what_changes_nothing_is_refused(predictor: Predict) -> None:
    plain, routed = predictor("t5", routed=False), predictor("t5")
    assert plain.tasks == []
    assert routed.tasks == TASKS
    with pytest.raises(ConfigError, match="task is 'alpha', but the tiny t5 does the same for all tasks"):
        plain.predict(["w1"], "alpha")
    with pytest.raises(ConfigError, match="unseen is 'uniform', but the tiny t5 routes all tasks alike"):
        plain.predict(["w1"], unseen="uniform")
    with pytest.raises(ConfigError, match="temperature is for generated answers, but choices are ranked"):
        routed.predict(["w1"], "alpha", ["w1", "w2"], temperature=1.0)
    assert plain.answer([Example("any", "w1", ("",))], PredictConfig(max_new_tokens=2)), (
        "a column of a file is no request"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top_p": 0.5}, "top_p is 0.5, but temperature is 0"),
        ({"seed": 1}, "seed is 1, but temperature is 0"),
        ({"temperature": -1.0}, "temperature is -1.0, expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"choices": ["a"]}, "expected two or more different texts"),
        ({"choices": ["a", "a"]}, "expected two or more different texts"),
        ({"choices": ["a", ""]}, "expected two or more different texts"),
        ({"stop": [""]}, "stop has an empty string"),
        ({"unseen": "average"}, "expected one of error, uniform"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        PredictConfig(**settings)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_texts_and_tasks_are_checked(predictor: Predict) -> None:
    model = predictor("t5")
    with pytest.raises(ConfigError, match="expected a list of strings"):
        model.predict("w1 w2", "alpha")
    with pytest.raises(ConfigError, match="2 texts and 1 tasks"):
        model.predict(["w1", "w2"], ["alpha"])
    with pytest.raises(DataError, match="text 2 is empty"):
        model.predict(["w1", " "], "alpha")
    assert model.predict([], "alpha") == []


def test_an_encoder_without_choices_is_refused_in_one_line(predictor: Predict) -> None:
    with pytest.raises(DataError, match="is an encoder, which ranks choices .* row '1' has none: .*--choices") as error:
        predictor("bert").predict(["w1"], "alpha")
    assert "\n" not in str(error.value)


def test_load_gives_model_tokenizer_and_answers(tmp_path: Path) -> None:
    found = mhr.load("builtin:t5-tiny")
    assert not found.model.training
    text = "rev last: abcd"
    batch = found.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        out = found.model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert found.predict([text], max_new_tokens=8) == [found.tokenizer.decode(out[0], skip_special_tokens=True).strip()]
    assert found.loaded.kind == load_model("builtin:t5-tiny").kind
    with pytest.raises(CheckpointError, match="no model at"):
        mhr.load(tmp_path / "absent")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"status": "running"}))
    with pytest.raises(MhrError):
        mhr.load(tmp_path / "run")


OF_WORDS = (
    {"temperature": 0.5},
    {"temperature": 0.5, "top_p": 0.5},
    {"temperature": 0.5, "seed": 1},
    {"stop": ["w"]},
    {"max_new_tokens": 2},
)


@pytest.mark.parametrize("settings", OF_WORDS, ids=lambda settings: list(settings)[-1])
@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_settings_of_words_are_refused_where_all_is_ranked(
    name: str, settings: dict[str, object], predictor: Predict, tmp_path: Path
) -> None:
    model, config = predictor(name), PredictConfig(**settings)  # type: ignore[arg-type]
    ranked = [Example("alpha", "w1", ("w3",), ("w3", "w4"), f"row-{i}") for i in range(2)]
    for ask in (
        lambda: model.check_used(ranked, config),
        lambda: answer_into(tmp_path / "out.jsonl", model, ranked, config, progress=False),
        lambda: model.predict(["w1"], "alpha", ["w3", "w4"], **settings),
    ):
        with pytest.raises(ConfigError, match="is for generated answers, but"):
            ask()
    assert list(tmp_path.iterdir()) == []
    if name != "bert":
        model.check_used([*ranked, Example("alpha", "w1", ("",), id="words")], config)


def test_one_part_of_a_mixed_file_may_be_all_ranked(
    predictor: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(files.ROWS_AT_ONCE, "cpu", 1)
    mixed = [Example("alpha", "w1", ("w3",), ("w3", "w4"), "a"), Example("alpha", "w1", ("",), id="b")]
    done = answer_into(tmp_path / "out.jsonl", predictor("t5"), mixed, PredictConfig(max_new_tokens=2), progress=False)
    assert done.rows == 2


def test_choices_are_refused_where_each_row_has_its_own(predictor: Predict) -> None:
    model, config = predictor("t5"), PredictConfig(choices=["w5", "w6"])
    own, offered = Example("alpha", "w1", ("w3",), ("w3", "w4")), Example("alpha", "w1", ("w5",), ("w5", "w6"))
    model.check_used([own, offered], config)
    with pytest.raises(ConfigError, match="choices are for rows that have none, but each row has its own"):
        model.check_used([own, own], config)
