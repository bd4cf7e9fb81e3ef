"""MHR and Poly against PEFT's Poly with the same weights: mixing, scaling, routing in evaluation, and every gradient."""

from __future__ import annotations

import pytest
import torch
from peft import PolyConfig, PolyModel, get_peft_model
from transformers import PreTrainedModel

import mhr
from mhr import AdapterBank, AdapterConfig
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
TARGETS = {"t5": ["q", "k", "v", "o"], "llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}
IDS = [2, 0, 2, 1]


def pair(name: str, heads: int, rank: int = 3) -> tuple[PreTrainedModel, AdapterBank, PolyModel]:
    """The same model twice, with our bank and with PEFT's, holding the same random weights."""
    model, other = tiny_model(name).double(), tiny_model(name).double()
    method = "mhr" if heads > 1 else "poly"
    config = AdapterConfig(method=method, n_heads=heads, n_skills=5, rank=rank, targets=TARGETS[name])
    bank = mhr.attach(model, config, TASKS)
    randomise(bank)
    poly = PolyConfig(r=rank, n_tasks=3, n_skills=5, n_splits=heads, target_modules=TARGETS[name])
    theirs = get_peft_model(other, poly).base_model.double().eval()
    with torch.no_grad():
        for layer_name, layer in bank.layers.items():
            peft_layer = theirs.get_submodule(f"model.{layer_name}")
            peft_layer.poly_lora_A["default"].copy_(layer.bank_a)
            peft_layer.poly_lora_B["default"].copy_(layer.bank_b)
            peft_layer.poly_router["default"].module_logits.copy_(layer.router.logits.flatten(1))
    return model, bank, theirs


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("name", TARGETS)
def test_outputs_and_gradients_agree(name: str, heads: int) -> None:
    model, bank, theirs = pair(name, heads)
    batch = random_batch(model)
    if name == "bert":
        batch["labels"] = batch["labels"].double()
        for p in model.mhr.saved_parameters():
            p.requires_grad_(False)
    ours = model(**batch, task_ids=IDS)
    expected = theirs(**batch, task_ids=torch.tensor(IDS))
    torch.testing.assert_close(ours.logits, expected.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.loss, expected.loss, rtol=1e-10, atol=1e-10)

    ours.loss.backward()
    expected.loss.backward()
    assert len(bank.layers) > 0
    for layer_name, layer in bank.layers.items():
        peft_layer = theirs.get_submodule(f"model.{layer_name}")
        gradients = {
            "A": (layer.bank_a.grad, peft_layer.poly_lora_A["default"].grad),
            "B": (layer.bank_b.grad, peft_layer.poly_lora_B["default"].grad),
            "Z": (layer.router.logits.grad.flatten(1), peft_layer.poly_router["default"].module_logits.grad),
        }
        for which, (got, truth) in gradients.items():
            assert truth.any(), f"{layer_name} {which}"
            torch.testing.assert_close(got, truth, rtol=1e-8, atol=1e-10)


def test_generation_agrees() -> None:
    model, _, theirs = pair("t5", heads=4)
    batch = random_batch(model)
    del batch["labels"]
    expected = theirs.generate(**batch, task_ids=torch.tensor(IDS), max_new_tokens=6)
    assert torch.equal(model.generate(**batch, task_ids=IDS, max_new_tokens=6), expected)


def test_the_initial_values_named_peft_are_peft_s() -> None:
    torch.manual_seed(0)
    model = tiny_model("t5")
    bank = mhr.attach(model, AdapterConfig(n_heads=4, rank=16, init="peft"), TASKS)
    poly = PolyConfig(r=16, n_tasks=3, n_skills=8, n_splits=4, target_modules=TARGETS["t5"])
    theirs = get_peft_model(tiny_model("t5"), poly).base_model
    for name, layer in bank.layers.items():
        peft_layer = theirs.get_submodule(f"model.{name}")
        bound = peft_layer.poly_lora_A["default"].abs().max()
        torch.testing.assert_close(layer.bank_a.abs().max(), bound, rtol=0.02, atol=0)


def test_mhr_with_one_head_is_poly() -> None:
    batch = random_batch(tiny_model("t5"))
    outputs = []
    for method in ("mhr", "poly"):
        model = tiny_model("t5").double()
        bank = mhr.attach(model, AdapterConfig(method=method, n_heads=1), TASKS)
        randomise(bank)
        out = model(**batch, task_ids=IDS)
        out.loss.backward()
        outputs.append([out.logits, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(outputs[0]) == 1 + 24 * 3
    for ours, other in zip(*outputs, strict=True):
        assert torch.equal(ours, other)
