"""Losses against what transformers and plain torch compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mhr.objectives import Objective, make_objective
from mhr.objectives.heads import States
from mhr.objectives.objective import sums_of, token_losses
from mhr.objectives.ranking import choice_losses
from tests.models import random_batch, tiny_model


@pytest.mark.parametrize(
    ("name", "kind"), [("t5", "seq2seq"), ("bart", "seq2seq"), ("llama", "causal"), ("gpt2", "causal")]
)
def test_the_mean_over_tokens_is_the_model_s_own_loss(name: str, kind: str) -> None:
    model, loss = tiny_model(name), make_objective(kind)
    batch = random_batch(model)
    batch["labels"][0, -1] = -100
    told = loss(model, {**batch, "task_ids": ["a", "b", "c", "d"]}, 0.0)
    torch.testing.assert_close(told.sums.sum() / loss.count(batch), model(**batch).loss, rtol=1e-5, atol=1e-6)
    assert told.counts.sum() == loss.count(batch)
    assert told.tasks == ["a", "b", "c", "d"]


def test_label_smoothing_spreads_mass_over_the_vocabulary() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    labels = torch.tensor([[1, 2, -100], [0, -100, -100]])
    log_p = logits.log_softmax(-1)
    places = ((0, 0), (0, 1), (1, 0))
    expected = torch.stack([-0.9 * log_p[b, t, labels[b, t]] - 0.1 * log_p[b, t].mean() for b, t in places])
    valid = labels.ne(-100)
    torch.testing.assert_close(token_losses(States(logits[valid]), labels[valid], 0.1), expected)
    torch.testing.assert_close(sums_of(expected, valid.sum(1)), torch.stack([expected[:2].sum(), expected[2]]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_choices_compete_within_their_example_only(smoothing: float) -> None:
    scores, counts = torch.randn(6, dtype=torch.float64), [2, 1, 3]
    labels = torch.tensor([1, 0, 2])
    found = choice_losses(scores, counts, labels, smoothing)
    for part, label, loss in zip(scores.split(counts), labels, found, strict=True):
        torch.testing.assert_close(loss, F.cross_entropy(part, label, label_smoothing=smoothing))


def test_the_ranking_loss_names_a_task_per_example() -> None:
    model = tiny_model("bert")
    loss: Objective = make_objective("encoder")
    ids = torch.randint(3, 60, (5, 7))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([1, 0]),
        "choice_counts": [2, 3],
        "task_ids": ["a", "a", "b", "b", "b"],
    }
    told = loss(model, batch, 0.0)
    scores = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, 0]
    assert told.tasks == ["a", "b"]
    assert loss.count(batch) == 2
    torch.testing.assert_close(told.sums[0], F.cross_entropy(scores[:2], torch.tensor(1)))
