"""A float32 bank on a base in 16 bits: its gradients against float64, parameter by parameter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mhr
from mhr import AdapterConfig
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


def gradients(name: str, dtype: torch.dtype, computed: torch.dtype, adapter: str) -> dict[str, Tensor]:
    """Of the bank on a base whose weights were rounded to `dtype`, with activations in `computed`."""
    model = tiny_model(name).to(dtype).to(computed)
    bank = mhr.attach(model, AdapterConfig(n_heads=4, n_skills=3, adapter=adapter), TASKS)
    randomise(bank)
    trained = [*bank.adapter_parameters(), *bank.router_parameters()]
    assert {p.dtype for p in trained} == {torch.float64 if computed == torch.float64 else torch.float32}
    model(**random_batch(model, batch=4), task_ids=IDS).loss.backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("adapter", ["lora", "ia3", "bottleneck"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.16), (torch.float16, 0.02), (torch.float32, 1e-4)])
def test_gradients_of_the_bank(dtype: torch.dtype, near: float, name: str, adapter: str) -> None:
    """16-bit arithmetic keeps 8 (bfloat16) or 11 bits (float16) of an activation, so float16 has an eighth of the limit. With few
    tokens, as here, gradients of queries and keys are differences of nearly equal numbers, and lose most of those bits."""
    exact = gradients(name, dtype, torch.float64, adapter)
    got = gradients(name, dtype, dtype, adapter)
    assert exact.keys() == got.keys()
    for key, gradient in exact.items():
        assert gradient.any(), key
        error = (got[key] - gradient).norm() / gradient.norm()
        assert error < near, f"{key}: {error:.1e}"
