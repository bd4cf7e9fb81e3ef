"""A model that computes NaN is refused wherever it would answer: no choice of it, and no token, is its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mhr.data import Example
from mhr.errors import DivergedError
from mhr.evaluation import LoadedModel, Prediction, generate_answers, load_model, rank_choices
from mhr.evaluation.not_a_number import check_scores
from mhr.evaluation.ranked import Ranked
from mhr.evaluation.result import EvaluationResult
from mhr.evaluation.sampling import Sampling

RANKED = Example("task", "some text", targets=("a",), choices=("a", "b"))
ASKED = Example("task", "some text", targets=("a",))


def spoiled(loaded: LoadedModel) -> LoadedModel:
    """The model with one NaN in what it computes last before its head."""
    with torch.no_grad():
        norm = [module for module in loaded.model.modules() if "Norm" in type(module).__name__][-1]
        norm.weight[0] = torch.nan
    return loaded


@pytest.mark.parametrize("name", ["t5", "bart", "llama", "bert"])
def test_choices_are_not_ranked(name: str, backbone: Callable[..., str]) -> None:
    loaded = spoiled(load_model(backbone(name)))
    with pytest.raises(DivergedError, match=r"computes scores \[nan, nan\] for an example of task 'task': .*float32"):
        rank_choices(loaded, [RANKED])


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
@pytest.mark.parametrize("n_beams", [1, 2])
def test_nothing_is_generated(name: str, n_beams: int, backbone: Callable[..., str]) -> None:
    with pytest.raises(DivergedError, match="computes logits that are NaN"):
        generate_answers(spoiled(load_model(backbone(name))), [ASKED], n_beams=n_beams, max_new_tokens=4)


def test_nothing_is_drawn_or_streamed(backbone: Callable[..., str]) -> None:
    """A draw from NaN would end the process on a GPU, and a stream would show what is refused in the end."""
    loaded, shown = spoiled(load_model(backbone("llama"))), []
    for how in ({"sampling": Sampling(temperature=1.0)}, {"stream": shown.append}):
        with pytest.raises(DivergedError, match="computes logits that are NaN"):
            generate_answers(loaded, [ASKED], max_new_tokens=4, **how)
    assert not shown


def test_an_infinite_score_is_one_where_another_is_higher() -> None:
    loaded = load_model("builtin:t5-tiny")
    check_scores(loaded, [RANKED], [Ranked([-1.0, -torch.inf], False, False, ("a", "b"))])
    for scores in ([-torch.inf, -torch.inf], [torch.inf, 0.0], [0.0, torch.nan]):
        with pytest.raises(DivergedError):
            check_scores(loaded, [RANKED], [Ranked(scores, False, False, ("a", "b"))])


def test_predictions_are_json(tmp_path: Path) -> None:
    found = Prediction("task", "1", "x", ("a",), "a", "ranking", ("a", "b"), [-1.0, -torch.inf])
    result = EvaluationResult("m", "causal", "s", "test", {}, {}, {}, {}, {}, 0.0, predictions=[found])

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    (line,) = result.write_predictions(tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["scores"] == [-1.0, None]
