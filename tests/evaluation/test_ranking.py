"""Ranking against one plain forward pass per (example, choice), as training would compute it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mhr.data import Example
from mhr.data.collators import IGNORED, CausalCollator, RankingCollator, Seq2SeqCollator
from mhr.errors import ConfigError, DataError, TaskError
from mhr.evaluation import LoadedModel, rank_choices
from tests.evaluation.conftest import KINDS, Ask
from tests.models import tiny_model

GENERATORS = [name for name, kind in KINDS.items() if kind != "encoder"]


@torch.no_grad()
def plain_score(loaded: LoadedModel, example: Example, choice: str, length_norm: float) -> float:
    """The score from the batch that the collator of training makes of this one choice."""
    one = dataclasses.replace(example, targets=(choice,), choices=(choice,))
    collators = {"seq2seq": Seq2SeqCollator, "causal": CausalCollator, "encoder": RankingCollator}
    batch = collators[loaded.kind](loaded.tokenizer)([one])
    tasks, labels = batch.pop("task_ids"), batch.pop("labels")
    batch.pop("choice_counts", None)
    with loaded.routing(tasks):
        if loaded.kind == "encoder":
            return float(loaded.model(**batch).logits[0, 0])
        logits = loaded.model(**batch, **({"labels": labels} if loaded.kind == "seq2seq" else {})).logits
    if loaded.kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    said: Tensor = labels[0] != IGNORED
    likelihoods = logits[0].log_softmax(-1)[said].gather(1, labels[0][said][:, None])
    return float(likelihoods.sum() / int(said.sum()) ** length_norm)


@pytest.mark.parametrize("routed", [True, False], ids=["routed", "plain"])
@pytest.mark.parametrize("name", KINDS)
def test_equals_a_loop_over_the_choices(ask: Ask, examples: list[Example], name: str, routed: bool) -> None:
    loaded = ask(name, routed)
    for length_norm in (1.0, 0.0):
        ranked = rank_choices(loaded, examples, length_norm=length_norm, batch_size=4)
        for example, found in zip(examples, ranked, strict=True):
            expected = [plain_score(loaded, example, choice, length_norm) for choice in example.choices]
            assert found.scores == pytest.approx(expected, rel=2e-6, abs=2e-5)
            assert found.best == expected.index(max(expected))


@pytest.mark.parametrize("name", KINDS)
def test_the_batch_size_changes_nothing(ask: Ask, examples: list[Example], name: str) -> None:
    loaded = ask(name)
    alone, together = rank_choices(loaded, examples, batch_size=1), rank_choices(loaded, examples)
    for a, b in zip(alone, together, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_tasks_decide_the_scores(ask: Ask, examples: list[Example], name: str) -> None:
    loaded = ask(name)
    same = [dataclasses.replace(examples[2], task=task) for task in ("alpha", "beta", "unseen")]
    scores = [ranked.scores for ranked in rank_choices(loaded, same)]
    assert scores[0] != pytest.approx(scores[1], abs=1e-4)
    assert scores[0] != pytest.approx(scores[2], abs=1e-4)
    as_beta = rank_choices(dataclasses.replace(loaded, task="beta"), same)
    assert as_beta[0].scores == pytest.approx(scores[1], abs=2e-5)
    with torch.no_grad():  # equal logits are uniform routing
        for logits in loaded.model.mhr.router_parameters():
            logits.zero_()
    assert rank_choices(loaded, same[:1])[0].scores == pytest.approx(scores[2], abs=2e-5)


def test_equal_choices_get_equal_scores_and_the_first_wins(ask: Ask) -> None:
    twins = Example("alpha", "w1 w2", ("w3",), ("w3", "w4 w5", "w3"), "x")
    for name in KINDS:
        found = rank_choices(ask(name), [twins])[0]
        assert found.scores[0] == pytest.approx(found.scores[2], rel=1e-6, abs=1e-6)
    assert dataclasses.replace(found, scores=[0.5, 0.1, 0.5]).best == 0


def test_examples_that_cannot_be_ranked_are_refused(ask: Ask) -> None:
    loaded = ask("t5")
    with pytest.raises(DataError, match="example 'x' of task 'alpha' has no choices to rank"):
        rank_choices(loaded, [Example("alpha", "w1", ("w2",), (), "x")])
    with pytest.raises(DataError, match=r"example 'x' of task 'alpha' has an empty choice among \['w2', ' '\]"):
        rank_choices(loaded, [Example("alpha", "w1", ("w2",), ("w2", " "), "x")])
    with pytest.raises(TaskError, match="unknown task 'alfa': did you mean 'alpha'"):
        rank_choices(loaded, [Example("alfa", "w1", ("w2",), ("w2", "w3"), "x")], unseen="error")


def test_a_classifier_of_several_labels_is_refused(ask: Ask, examples: list[Example]) -> None:
    loaded = dataclasses.replace(ask("bert", routed=False), model=tiny_model("bert", num_labels=3))
    with pytest.raises(ConfigError, match="the tiny bert has 3 outputs: expected num_labels=1"):
        rank_choices(loaded, examples)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_truncated_is_noted(ask: Ask, name: str) -> None:
    loaded = ask(name)
    long, short = " ".join(["w1"] * 20), "w1 w2"
    made = [Example("alpha", text, ("w3",), ("w3", "w4 w5 w6 w7"), str(i)) for i, text in enumerate((short, long))]
    found = rank_choices(loaded, made, max_input_length=12, max_target_length=4)
    assert [r.cut_input for r in found] == [False, True]
    assert [r.cut_choices for r in found] == [loaded.kind != "encoder"] * 2


def test_the_model_is_left_as_it_was(ask: Ask, examples: list[Example]) -> None:
    loaded = ask("t5")
    loaded.model.train()
    rank_choices(loaded, examples)
    assert loaded.model.training
    assert all(layer.training for layer in loaded.model.mhr.layers.values())
    assert torch.is_grad_enabled()


def test_mixed_precision_is_near_and_is_used(ask: Ask, examples: list[Example]) -> None:
    for name in ("t5", "llama", "bert"):
        loaded = ask(name)
        exact, rounded = rank_choices(loaded, examples), rank_choices(loaded, examples, precision="bf16")
        scores = [score for ranked in exact for score in ranked.scores]
        near = [score for ranked in rounded for score in ranked.scores]
        assert near != scores
        assert near == pytest.approx(scores, rel=0.1, abs=0.1)
    with pytest.raises(ConfigError, match="unknown precision 'bf61': did you mean 'bf16'"):
        rank_choices(loaded, examples, precision="bf61")


@pytest.mark.parametrize("name", GENERATORS)
def test_progress_counts_examples(ask: Ask, examples: list[Example], name: str) -> None:
    done: list[float] = []
    rank_choices(ask(name), examples, batch_size=4, advance=done.append)
    assert done == [4, 4, 1]


def test_progress_of_an_encoder_counts_parts_of_examples(ask: Ask, examples: list[Example]) -> None:
    done: list[float] = []
    rank_choices(ask("bert"), examples, advance=done.append)
    assert sum(done) == pytest.approx(len(examples))
