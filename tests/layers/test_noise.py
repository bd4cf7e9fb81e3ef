"""Relaxed-Bernoulli noise on the routing: when it is drawn, for whom, and how it is distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mhr
from mhr import AdapterConfig
from mhr.config import NOISES
from mhr.errors import ConfigError, TaskError
from mhr.routing.adamix import BANK_INFERENCE
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "copa"]


def bank_with(noise: str, temperature: float = 1.0) -> mhr.AdapterBank:
    model = tiny_model("llama").train()
    config = AdapterConfig(n_heads=2, n_skills=3, targets=["q_proj"], noise=noise, temperature=temperature)
    return mhr.attach(model, config, TASKS)


def test_per_example_draws_for_every_example() -> None:
    bank = bank_with("per_example")
    batch = bank.for_batch(IDS)
    assert batch.tasks.tolist() == [2, 0, 2, 2]
    assert batch.rows.tolist() == [0, 1, 2, 3]
    assert batch.noise.shape == (2, 4, 2, 3)
    w = next(iter(bank.groups.values()))(batch)
    assert not torch.equal(w[0], w[2])


def test_per_task_draws_for_every_distinct_task() -> None:
    bank = bank_with("per_task")
    batch = bank.for_batch(IDS)
    assert batch.tasks.tolist() == [2, 0]
    assert batch.rows.tolist() == [0, 1, 0, 0]
    assert batch.noise.shape == (2, 2, 2, 3)


def test_layers_and_batches_have_noise_of_their_own() -> None:
    bank = bank_with("per_task")
    first, second = bank.for_batch(IDS), bank.for_batch(IDS)
    assert not torch.equal(first.noise, second.noise)
    one, other = (router(first) for router in bank.groups.values())
    assert not torch.equal(one, other)


@pytest.mark.parametrize("noise", ["per_example", "per_task"])
def test_evaluation_has_no_noise(noise: str) -> None:
    bank = bank_with(noise).eval()
    batch = bank.for_batch(IDS)
    assert batch.noise is None
    assert batch.tasks.tolist() == [2, 0]
    assert batch.rows.tolist() == [0, 1, 0, 0]


def test_the_model_s_mode_is_the_bank_s() -> None:
    model = tiny_model("llama").train()
    bank = mhr.attach(model, AdapterConfig(noise="per_task", n_heads=2), TASKS)
    assert bank.training
    assert bank.for_batch(IDS).noise is not None
    model.eval()
    assert bank.for_batch(IDS).noise is None
    inputs = random_batch(model)
    assert torch.equal(model(**inputs, task_ids=IDS).logits, model(**inputs, task_ids=IDS).logits)


def test_noise_is_logistic_and_finite() -> None:
    torch.manual_seed(0)
    noise = torch.cat([bank_with("per_example").for_batch(["rte"] * 2000).noise.flatten() for _ in range(2)]).double()
    assert noise.isfinite().all()
    # A logistic variable has the mean 0 and the variance pi^2 / 3, and sigmoid makes it uniform.
    n = noise.numel()
    assert noise.mean().abs() < 4 * (torch.pi**2 / 3 / n) ** 0.5
    assert abs(noise.var() / (torch.pi**2 / 3) - 1) < 0.05
    v = torch.sigmoid(noise).sort().values
    assert (v - torch.linspace(0, 1, n, dtype=v.dtype)).abs().max() < 1.63 / n**0.5  # Kolmogorov-Smirnov at 1%


def test_the_mean_over_noise_is_the_relaxed_bernoulli_s() -> None:
    bank = bank_with("per_example", temperature=0.5)
    router = next(iter(bank.groups.values()))
    torch.nn.init.constant_(router.logits, 1.5)
    torch.manual_seed(0)
    p = torch.sigmoid((router.logits[0] + bank.for_batch(["boolq"] * 4000).noise[0]) / 0.5)
    # P(relaxed value > 1/2) = sigmoid(logit), at any temperature.
    assert abs((p > 0.5).double().mean() - torch.sigmoid(torch.tensor(1.5))) < 0.01


def test_a_low_temperature_makes_the_choice_hard() -> None:
    def spread(temperature: float) -> float:
        bank = bank_with("per_example", temperature)
        router = next(iter(bank.groups.values()))
        torch.manual_seed(0)
        return float(router(bank.for_batch(["rte"] * 100)).detach().std())

    assert spread(0.05) > spread(1.0) > spread(20.0)


def test_noise_follows_the_dtype_of_the_model() -> None:
    model = tiny_model("llama").double().train()
    bank = mhr.attach(model, AdapterConfig(noise="per_task", n_heads=2), TASKS)
    assert bank.for_batch(IDS).noise.dtype == torch.float64


def test_noise_without_learned_routing_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise is 'per_task', but method 'private' has no learned routing"):
        AdapterConfig(method="private", noise="per_task")
    with pytest.raises(ConfigError, match="straight_through is True, but method 'uniform'"):
        AdapterConfig(method="uniform", straight_through=True)


OMITTED: dict[str, dict[str, Any]] = {
    **{f"{method}, {noise}": {"method": method, "noise": noise} for method in ("mhr", "poly") for noise in NOISES},
    **{method: {"method": method} for method in ("hydra", "private", "shared", "uniform", "hash")},
    **{f"adamix, {mode}": {"method": "adamix", "inference": mode} for mode in BANK_INFERENCE},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", OMITTED)
def test_tasks_that_are_left_out_are_as_if_they_were_named(case: str, training: bool) -> None:
    """Or an error says that they have to be named: where each example draws for itself."""
    settings = dict(OMITTED[case])
    inference = settings.pop("inference", "average")
    model = tiny_model("llama").train(training)
    bank = mhr.attach(model, AdapterConfig(**settings), ["boolq"])
    bank.inference = inference
    randomise(bank)
    batch = random_batch(model)

    def logits(ids: list[str] | None) -> torch.Tensor:
        torch.manual_seed(0)
        bank.seed_draws(0, 0, 0)
        found: torch.Tensor = model(**batch, task_ids=ids).logits
        return found

    named = logits(["boolq"] * len(batch["input_ids"]))
    alone = settings.get("noise") == "per_example" if training else inference == "sentence"
    if alone:
        with pytest.raises(TaskError, match="task_ids is missing: .*name their tasks"):
            logits(None)
    else:
        assert torch.equal(logits(None), named)
