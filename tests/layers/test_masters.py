"""Modules that are trained whole beside a base in 16 bits: float32 in weights, gradients and logits, and the base's dtype elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import mhr
from mhr import AdapterConfig
from tests.architectures import build, inputs_for
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
NEAR = {torch.bfloat16: 0.16, torch.float16: 0.02}
# (model, modules that are trained whole, those of them whose outputs go on in 16 bits)
SAVED = [
    ("bert", None),
    ("bert", ["classifier", "bert.pooler"]),
    ("bert", ["bert.pooler.dense", "bert.encoder.layer.1.output.LayerNorm"]),
    ("bert", ["bert.embeddings.word_embeddings", "classifier"]),
    ("bert", ["bert.encoder.layer.0"]),
    ("llama", ["lm_head"]),
    ("gpt2", ["lm_head"]),
    ("t5", ["lm_head", "shared"]),
    ("bart", ["lm_head"]),
]


def attached(name: str, modules: list[str] | None, dtype: torch.dtype, computed: torch.dtype) -> PreTrainedModel:
    """On a base whose weights were rounded to `dtype`, with activations in `computed`."""
    model = tiny_model(name).to(dtype).to(computed)
    targets: Any = "attention"
    if modules == ["bert.encoder.layer.0"]:
        targets = [f"bert.encoder.layer.1.attention.self.{part}" for part in ("query", "value")]
    config = AdapterConfig(n_heads=4, n_skills=3, modules_to_save=modules, targets=targets)
    randomise(mhr.attach(model, config, TASKS))
    return model


def gradients(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(**random_batch(model, batch=4), task_ids=IDS)
    (1024 * out.logits.double().square().mean()).backward()  # scaled, as gradients in float16 have to be
    return out.logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(("name", "modules"), SAVED)
def test_gradients_and_logits_against_float64(name: str, modules: list[str] | None, dtype: torch.dtype) -> None:
    logits, exact = gradients(attached(name, modules, dtype, torch.float64))
    model = attached(name, modules, dtype, dtype)
    assert {p.dtype for p in model.mhr.saved_parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}
    got, found = gradients(model)
    head = modules is None or any(part in modules for part in ("classifier", "lm_head"))
    assert got.dtype == (torch.float32 if head else dtype)
    assert (got - logits).norm() < NEAR[dtype] / 4 * logits.norm()
    assert exact.keys() == found.keys()
    for key, gradient in exact.items():
        assert found[key].dtype == torch.float32, key
        # The bank's own are those of test_half.py; that of a key's bias is zero but for rounding.
        if key.startswith(tuple(model.mhr.saved)) and not key.endswith("key.bias"):
            assert gradient.any(), key
            assert (found[key] - gradient).norm() < NEAR[dtype] * gradient.norm(), key


def test_a_head_loses_nothing_to_16_bits() -> None:
    """The head of 16-bit states by itself: exact, where a 16-bit head would round its weights and its logits."""
    model = attached("bert", None, torch.bfloat16, torch.bfloat16)
    states: list[Tensor] = []
    with torch.no_grad():
        model.classifier.weight.add_(1e-6)
    handle = model.dropout.register_forward_hook(lambda module, args, output: states.append(output))
    logits = model(**random_batch(model), task_ids=IDS).logits
    handle.remove()
    (state,) = states
    assert state.dtype == torch.bfloat16
    exact = nn.functional.linear(state.double(), model.classifier.weight.double(), model.classifier.bias.double())
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "modules"), SAVED)
def test_autocast_computes_as_ever(name: str, modules: list[str] | None) -> None:
    model = attached(name, modules, torch.bfloat16, torch.bfloat16)
    wide = attached(name, modules, torch.bfloat16, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**random_batch(model), task_ids=IDS).logits
    expected = wide(**random_batch(wide), task_ids=IDS).logits
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(("name", "modules"), SAVED)
def test_disabled_and_detached_the_model_is_the_16_bit_one(name: str, modules: list[str] | None) -> None:
    plain = tiny_model(name).to(torch.bfloat16).requires_grad_(False)  # by which torch chooses its attention
    batch = random_batch(plain)
    expected = plain(**batch).logits
    model = attached(name, modules, torch.bfloat16, torch.bfloat16)
    with torch.no_grad():
        for p in model.mhr.saved_parameters():
            p.add_(0.25)
    for one in (model, copy.deepcopy(model)):
        adapted = one(**batch, task_ids=IDS).logits
        with mhr.disabled(one):
            assert torch.equal(one(**batch).logits, expected)
        assert torch.equal(one(**batch, task_ids=IDS).logits, adapted)
        assert {p.dtype for p in one.mhr.saved_parameters()} == {torch.float32}
    brought = {n: t.clone() for n, t in model.mhr.saved_tensors().items() if t.is_floating_point()}
    mhr.detach(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    state = dict(model.named_parameters(remove_duplicate=False))
    assert brought
    assert all(torch.equal(state[n], t.bfloat16()) for n, t in brought.items())
    assert model(**batch).logits.dtype == torch.bfloat16


def test_a_model_that_is_moved_to_another_dtype_keeps_it() -> None:
    model = attached("bert", None, torch.float32, torch.float32).double()
    with mhr.disabled(model):
        assert model(**random_batch(model)).logits.dtype == torch.float64
    mhr.detach(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", ["roberta", "deberta-v2", "distilbert", "electra", "t5", "bart", "llama", "gpt2"])
def test_an_architecture_s_head_works_on_a_16_bit_base(name: str) -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build("classifier", name).to(torch.bfloat16).to(dtype)
        mhr.attach(model, AdapterConfig(n_heads=1, targets="all-linear"), TASKS)
        inputs = inputs_for("classifier", 2, 8)
        logits = model(**inputs, task_ids=IDS[:2]).logits
        assert logits.dtype == torch.float32
        logits.square().sum().backward()
        assert all(p.grad is not None for p in model.mhr.saved_parameters())
        found.append(logits.detach().double())
    assert (found[0] - found[1]).norm() <= 0.1 * found[0].norm()
