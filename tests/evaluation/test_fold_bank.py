"""A loaded model whose bank is folded into its base weights computes what it computed with the bank."""

from __future__ import annotations

import pytest
import torch
from transformers import ByT5Tokenizer

import mhr
from mhr.evaluation import LoadedModel, fold_bank
from tests.models import random_batch, randomise, tiny_model


@pytest.mark.parametrize(("name", "kind"), [("t5", "seq2seq"), ("llama", "causal")])
@pytest.mark.parametrize("task", ["b", None])
def test_the_plain_model_is_the_routed_one(name: str, kind: str, task: str | None) -> None:
    model = tiny_model(name, vocab_size=384)
    randomise(mhr.attach(model, mhr.AdapterConfig(method="mhr", n_heads=2, n_skills=3, rank=2), ["a", "b"]))
    loaded = LoadedModel(model, ByT5Tokenizer(), kind, "tiny", task=task)
    batch = random_batch(model)
    with loaded.routing(["b"] * 4 if task else ["unseen"] * 4):
        routed = model(**batch).logits
    assert fold_bank(loaded) == ("the mixture of task 'b'" if task else "the average of its skills")
    assert loaded.bank is None
    assert loaded.task is None
    torch.testing.assert_close(loaded.model(**batch).logits, routed, rtol=1e-4, atol=1e-5)


def test_a_plain_model_stays_as_it_is() -> None:
    model = tiny_model("t5", vocab_size=384)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fold_bank(LoadedModel(model, ByT5Tokenizer(), "seq2seq", "tiny")) == "none: it has no bank"
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
