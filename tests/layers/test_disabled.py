"""mhr.disabled: the frozen base of a model with a bank, which is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

import mhr
from mhr import AdapterConfig
from mhr.errors import ConfigError
from tests.models import GENERATORS, MODELS, random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


def frozen(name: str) -> PreTrainedModel:
    """A model as a bank leaves its base: torch may compute the attention of one that asks for gradients by another kernel, whose last
    bits are others."""
    return tiny_model(name).requires_grad_(False)


@pytest.mark.parametrize("adapter", ["lora", "ia3", "bottleneck"])
@pytest.mark.parametrize("name", MODELS)
def test_the_base_answers_bit_for_bit(name: str, adapter: str) -> None:
    model = frozen(name)
    batch = random_batch(model)
    base = model(**batch)[0]
    randomise(mhr.attach(model, AdapterConfig(n_heads=4, adapter=adapter), TASKS))
    adapted = model(**batch, task_ids=IDS)[0]
    with mhr.disabled(model):
        assert torch.equal(model(**batch)[0], base)
        assert torch.equal(model(**batch, task_ids=IDS)[0], base)
        with mhr.disabled(model):
            assert torch.equal(model(**batch)[0], base)
        assert torch.equal(model(**batch)[0], base)
    assert not torch.equal(adapted, base)
    assert torch.equal(model(**batch, task_ids=IDS)[0], adapted)


@pytest.mark.parametrize("name", GENERATORS)
def test_generation_by_the_base(name: str) -> None:
    model = tiny_model(name)
    ids = random_batch(model)["input_ids"]
    settings = {"max_new_tokens": 4, "num_beams": 2}
    base = model.generate(ids, **settings)
    randomise(mhr.attach(model, AdapterConfig(n_heads=4), TASKS), size=3.0)
    with mhr.disabled(model):
        assert torch.equal(model.generate(ids, **settings), base)
        assert torch.equal(model.generate(ids, task_ids=IDS, **settings), base)
    assert not torch.equal(model.generate(ids, task_ids=IDS, **settings), base)


def test_modules_trained_whole_have_their_first_values_and_get_no_gradient() -> None:
    model = frozen("bert")
    batch = random_batch(model)
    base = model(**batch).logits
    bank = mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
    assert "classifier" in bank.saved
    with torch.no_grad():
        for p in bank.saved_parameters():
            p.add_(1.0)
    trained = model.classifier.weight.clone()
    for m in (model, copy.deepcopy(model)):
        with mhr.disabled(m):
            out = m(**batch).logits
            assert torch.equal(out, base)
            assert not out.requires_grad
        assert torch.equal(m.classifier.weight, trained)
        assert m.classifier.weight.requires_grad


def test_an_exception_ends_the_block() -> None:
    model = tiny_model("bert")
    batch = random_batch(model)
    randomise(mhr.attach(model, AdapterConfig(n_heads=4), TASKS))
    adapted = model(**batch, task_ids=IDS).logits
    with pytest.raises(ValueError, match="stop"), mhr.disabled(model), mhr.disabled(model):
        raise ValueError("stop")
    assert torch.equal(model(**batch, task_ids=IDS).logits, adapted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_block_is_recomputed_as_it_was_computed(reentrant: bool) -> None:
    """A loss with a term of the base, whose blocks are computed again after the block has ended."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("llama").double().train()
        randomise(mhr.attach(model, AdapterConfig(n_heads=4), TASKS))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        embeddings = model.get_input_embeddings()(random_batch(model)["input_ids"]).requires_grad_(True)
        embeddings.retain_grad()
        with mhr.disabled(model):
            first = model(inputs_embeds=embeddings).logits
        (first.square().sum() + model(inputs_embeds=embeddings, task_ids=IDS).logits.square().sum()).backward()
        gradients.append([embeddings.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_drawn_skills_are_not_used_up() -> None:
    model = tiny_model("llama").train()
    bank = mhr.attach(model, AdapterConfig(method="adamix"), TASKS)
    before = bank._next_draw
    with mhr.disabled(model):
        model(**random_batch(model), task_ids=IDS)
    assert bank._next_draw == before


def test_a_model_without_a_bank_is_an_error() -> None:
    with pytest.raises(ConfigError, match="has no bank"), mhr.disabled(tiny_model("bert")):
        pass
