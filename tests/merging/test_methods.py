"""Merging one bank: a merged task is the routed model on that task, and MHR-mu is the average of the factors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mhr import AdapterConfig, attach
from mhr.adapters import AdapterCheckpoint, PlainAdapter, attach_plain, checkpoint_of, fold_into
from mhr.errors import CheckpointError, ConfigError, MergeError, TaskError
from mhr.merging import merge_methods, merge_task, merge_uniform, merge_weighted
from tests.models import MODELS, random_batch, tiny_model

TASKS = ["boolq", "rte", "wic"]
BANKS = {
    "mhr": {"method": "mhr", "n_heads": 4, "n_skills": 3, "rank": 3, "alpha": 6.0},
    "mhr-block": {"method": "mhr", "n_heads": 2, "n_skills": 5, "granularity": "block"},
    "poly": {"method": "poly", "n_skills": 3},
    "straight-through": {"method": "poly", "n_skills": 4, "straight_through": True},
    "private": {"method": "private"},
    "random": {"method": "random", "n_heads": 2, "granularity": "coarse"},
    "hash": {"method": "hash"},
    "uniform": {"method": "uniform", "n_skills": 3},
    "shared": {"method": "shared"},
    "poly-ia3": {"method": "poly", "adapter": "ia3", "n_skills": 3},
    "private-ia3": {"method": "private", "adapter": "ia3"},
    "mhr-bottleneck": {"method": "mhr", "adapter": "bottleneck", "n_heads": 4, "n_skills": 3},
    "private-bottleneck": {"method": "private", "adapter": "bottleneck"},
    "adamix": {"method": "adamix", "adapter": "bottleneck", "n_skills": 3},
    "adamix-lora": {"method": "adamix", "share": "up", "n_skills": 3, "alpha": 6.0},
}


def trained(name: str, settings: dict, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, AdapterCheckpoint]:
    """A model with a bank whose every number was moved, and its checkpoint."""
    model = tiny_model(name).to(dtype)
    attach(model, AdapterConfig(**settings), TASKS)
    generator = torch.Generator().manual_seed(7)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.5 * torch.randn(p.shape, generator=generator))
    return model, checkpoint_of(model, "tiny")


def output(model: nn.Module, task: str | None = None) -> torch.Tensor:
    batch = random_batch(model)
    batch.pop("labels", None)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    ids = {} if task is None else {"task_ids": [task] * len(batch["input_ids"])}
    with torch.no_grad():
        found = model(**batch, **ids)
    return found.logits if "logits" in found else found.last_hidden_state


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-12) -> None:
    assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_a_merged_task_is_the_routed_model(name, bank):
    model, checkpoint = trained(name, BANKS[bank])
    for task in TASKS:
        merged = tiny_model(name).double()
        attach_plain(merged, merge_task(checkpoint, task=task))
        expected = output(model, task)
        close(output(merged), expected)
        assert (expected - output(tiny_model(name).double())).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_task_is_the_routed_model_on_every_architecture(name):
    model, checkpoint = trained(name, BANKS["mhr"])
    attached, folded = tiny_model(name).double(), tiny_model(name).double()
    plain = merge_task(checkpoint, task="rte")
    attach_plain(attached, plain, task="rte")
    fold_into(folded, plain)
    close(output(attached), output(model, "rte"))
    close(output(folded), output(model, "rte"))


@pytest.mark.parametrize("name", MODELS)
def test_mu_is_the_average_of_the_factors(name):
    model, checkpoint = trained(name, BANKS["mhr"])
    plain = merge_uniform(checkpoint)
    for layer, factors in plain.layers.items():
        bank_a, bank_b = (checkpoint.tensors[f"layers.{layer}.{part}"] for part in ("bank_a", "bank_b"))
        close(factors.a, bank_a.mean(1).reshape(factors.a.shape))
        close(factors.b, torch.cat(list(bank_b.mean(1)), dim=-1))
        assert (factors.rank, factors.alpha, factors.scaling) == (3, 6.0, 2.0)
    folded = tiny_model(name).double()
    fold_into(folded, plain)
    # A task that the bank has never seen is routed uniformly, which is the same average.
    batch_size = len(random_batch(model)["input_ids"])
    with model.mhr.routing(["unseen"] * batch_size, unseen="uniform"):
        expected = output(model)
    close(output(folded), expected, 1e-6)  # routing weights are 1/3 in float32 there, in float64 here


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_uniform_over_copies_is_the_copy(adapter):
    model, checkpoint = trained("t5", {"method": "poly", "n_skills": 4, "adapter": adapter}, torch.float32)
    for key, tensor in checkpoint.tensors.items():
        if key.startswith("layers."):
            tensor.copy_(tensor[:, 2:3].clone().expand_as(tensor))
    for layer, found in merge_uniform(checkpoint).layers.items():
        if adapter == "ia3":
            assert torch.equal(found.v, checkpoint.tensors[f"layers.{layer}.bank_v"][0, 2, 0])
        else:
            assert torch.equal(found.a, checkpoint.tensors[f"layers.{layer}.bank_a"][0, 2])
            assert torch.equal(found.b, checkpoint.tensors[f"layers.{layer}.bank_b"][0, 2])


def same(one, other, tolerance: float = 1e-7) -> None:
    assert one.layers.keys() == other.layers.keys()
    for name, factors in one.layers.items():
        close(factors.a, other.layers[name].a, tolerance)
        close(factors.b, other.layers[name].b, tolerance)


def test_weights_over_tasks():
    _, checkpoint = trained("t5", BANKS["mhr"])
    tasks = {task: merge_task(checkpoint, task=task) for task in TASKS}
    same(merge_weighted(checkpoint, weights={"rte": 3.0}), tasks["rte"])
    merged = merge_weighted(checkpoint, weights={"wic": 1, "boolq": 3, "rte": 0})
    same(merged, merge_weighted(checkpoint, weights={"boolq": 0.75, "wic": 0.25}), 1e-12)
    for name, factors in merged.layers.items():
        expected = 0.75 * tasks["boolq"].layers[name].a + 0.25 * tasks["wic"].layers[name].a
        close(factors.a, expected, 1e-7)


def test_weights_over_skills():
    _, checkpoint = trained("t5", BANKS["mhr"])
    same(merge_weighted(checkpoint, weights=[2, 2, 2]), merge_uniform(checkpoint), 1e-12)
    merged = merge_weighted(checkpoint, weights=[0, 1, 3])
    for name, factors in merged.layers.items():
        bank = checkpoint.tensors[f"layers.{name}.bank_b"]
        close(factors.b, torch.cat(list(0.25 * bank[:, 1] + 0.75 * bank[:, 2]), dim=-1))
    _, private = trained("t5", BANKS["private"])
    same(merge_weighted(private, weights=[0, 1, 0]), merge_task(private, task="rte"), 1e-12)


@pytest.mark.parametrize(
    ("weights", "error", "match"),
    [
        ([1.0, 2.0], MergeError, "got 2 weights for 3 skills"),
        ([0, 0, 0], MergeError, "with one above 0"),
        ([1, -1, 1], MergeError, "at least 0"),
        ([1, float("nan"), 1], MergeError, "finite"),
        ({}, MergeError, "with one above 0"),
        ({"boolk": 1}, TaskError, "unknown task 'boolk': did you mean 'boolq'"),
    ],
)
def test_weights_that_do_not_fit(weights, error, match):
    _, checkpoint = trained("t5", BANKS["mhr"])
    with pytest.raises(error, match=match):
        merge_weighted(checkpoint, weights=weights)


def test_unknown_names():
    _, checkpoint = trained("t5", BANKS["mhr"])
    with pytest.raises(TaskError, match="unknown task 'rt': did you mean 'rte'"):
        merge_task(checkpoint, task="rt")
    with pytest.raises(ConfigError, match="unknown merge method 'unifrom': did you mean 'uniform'"):
        merge_methods["unifrom"]


def test_modules_travel_whole():
    model, checkpoint = trained("bert", BANKS["poly"])
    plain = merge_uniform(checkpoint)
    assert isinstance(plain, PlainAdapter)
    assert plain.modules.keys() == {"classifier"}
    assert torch.equal(plain.modules["classifier"]["weight"], model.classifier.weight)
    _, checkpoint = trained("bert", BANKS["poly-ia3"])
    assert merge_uniform(checkpoint).kind == "ia3"


def test_another_base_is_refused():
    _, checkpoint = trained("t5", BANKS["mhr"], torch.float32)
    plain = merge_uniform(checkpoint)
    for change in (attach_plain, fold_into):
        with pytest.raises(CheckpointError, match="belongs to another base model .tiny.: the architecture is the same"):
            change(tiny_model("t5", seed=1), plain)
