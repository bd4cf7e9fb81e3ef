"""Gradient checkpointing gives the gradients of the plain run, in both of its modes, whatever runs before the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import mhr
from mhr import AdapterConfig
from tests.models import MODELS, random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
MODES: dict[str, dict[str, Any]] = {"re-entrant": {"use_reentrant": True}, "not re-entrant": {"use_reentrant": False}}

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_(en|dis)able. is deprecated:FutureWarning")


def adapted(name: str, before_attaching: dict[str, Any] | None = None, **config: Any) -> PreTrainedModel:
    model = tiny_model(name).double().train()
    if before_attaching is not None:
        model.gradient_checkpointing_enable(before_attaching)
    bank = mhr.attach(model, AdapterConfig(**{"n_heads": 4, **config}), TASKS)
    randomise(bank)
    return model


def gradients(model: PreTrainedModel, step: Callable[[PreTrainedModel], Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.mhr.seed_draws(0, 0)
    model.zero_grad()
    step(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def one_call(model: PreTrainedModel) -> Tensor:
    return model(**random_batch(model), task_ids=IDS)[0].square().sum()


def two_calls(model: PreTrainedModel) -> Tensor:
    """Two batches of different tasks and sizes before one backward pass, as for a consistency loss."""
    first = model(**random_batch(model), task_ids=IDS)[0].square().sum()
    second = model(**random_batch(model, batch=2, seed=1), task_ids=["rte", "boolq"])[0].square().sum()
    return first + 2 * second


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any(), name
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("step", [one_call, two_calls])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_without_checkpointing(name: str, mode: str, step: Callable[..., Tensor]) -> None:
    model = adapted(name)
    expected = gradients(model, step)
    model.gradient_checkpointing_enable(MODES[mode])
    assert_same(gradients(model, step), expected)
    model.gradient_checkpointing_disable()
    assert_same(gradients(model, step), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("noise", ["per_example", "per_task"])
def test_the_recomputation_has_the_noise_of_the_forward_pass(noise: str, mode: str) -> None:
    model = adapted("t5", noise=noise)
    expected = gradients(model, two_calls)
    model.gradient_checkpointing_enable(MODES[mode])
    assert_same(gradients(model, two_calls), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("adapter", ["bottleneck", "lora"])
def test_the_recomputation_has_the_draws_of_the_forward_pass(adapter: str, mode: str) -> None:
    model = adapted("t5", method="adamix", adapter=adapter, n_heads=1)
    expected = gradients(model, two_calls)
    model.gradient_checkpointing_enable(MODES[mode])
    assert_same(gradients(model, two_calls), expected)


@pytest.mark.parametrize("mode", MODES)
def test_checkpointing_may_be_on_before_the_bank_is_attached(mode: str) -> None:
    expected = gradients(adapted("t5"), two_calls)
    assert_same(gradients(adapted("t5", before_attaching=MODES[mode]), two_calls), expected)


@pytest.mark.parametrize("mode", MODES)
def test_ia3_and_shared_tables_are_recomputed_too(mode: str) -> None:
    for config in ({"adapter": "ia3"}, {"granularity": "coarse"}, {"straight_through": True}):
        model = adapted("bart", **config)
        expected = gradients(model, two_calls)
        model.gradient_checkpointing_enable(MODES[mode])
        assert_same(gradients(model, two_calls), expected)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_are_computed_twice(mode: str) -> None:
    model = adapted("t5")
    calls = []
    layer = next(iter(model.mhr.layers.values()))
    layer.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, one_call)
    assert len(calls) == 1
    model.gradient_checkpointing_enable(MODES[mode])
    gradients(model, one_call)
    assert len(calls) == 3


def test_detach_gives_the_checkpoint_function_back() -> None:
    model = tiny_model("t5").train()
    model.gradient_checkpointing_enable()
    functions = [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()]
    mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
    model.gradient_checkpointing_enable()
    mhr.detach(model)
    after = [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()]
    assert [getattr(f, "func", f) for f in after] == [getattr(f, "func", f) for f in functions]
    model(**random_batch(model)).loss.backward()
    assert model.shared.weight.grad is not None
