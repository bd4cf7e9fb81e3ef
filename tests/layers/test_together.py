"""Factors that all layers of a call are mixed at once, as on CUDA, are those that each layer mixes for itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import mhr
from mhr import AdapterConfig
from mhr.layers import together
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


def adapted(name: str, dtype: torch.dtype = torch.float64, **config: Any) -> PreTrainedModel:
    # AdaMix draws its skills while it trains; it is its average that is mixed.
    model = tiny_model(name).to(dtype).train(config.get("method") != "adamix")
    randomise(
        mhr.attach(
            model, AdapterConfig(**{**({} if config.get("method") == "adamix" else {"n_heads": 4}), **config}), TASKS
        )
    )
    return model


def results(model: PreTrainedModel) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    model.mhr.seed_draws(0, 0)
    out = model(**random_batch(model), task_ids=IDS)[0]
    out.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), **gradients}


def mixes(calls: Counter[str]) -> int:
    return calls["mhr::mix"] + calls["mhr::mix_beside"]


def both(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[str, Tensor], Counter[str]]:
    alone = results(model)
    monkeypatch.setattr(together, "wanted", lambda bank: True)
    with Counting() as count:
        at_once = results(model)
    assert at_once.keys() == alone.keys()
    return alone, at_once, count.calls


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("t5", {}),
        ("t5", {"granularity": "layer", "noise": "per_task"}),
        ("gpt2", {"granularity": "layer"}),
        ("bert", {"method": "adamix"}),
        ("bert", {"method": "adamix", "adapter": "bottleneck"}),
        ("bert", {"adapter": "bottleneck"}),
        ("bert", {"adapter": "bottleneck", "norm": True}),
        ("bert", {"adapter": "ia3"}),
        ("t5", {"method": "private", "adapter": "recurrent", "n_heads": None}),
        ("t5", {"method": "uniform", "n_heads": None}),
    ],
    ids=str,
)
def test_outputs_and_gradients_are_the_same(name: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    alone, at_once, calls = both(adapted(name, **config), monkeypatch)
    for key, expected in alone.items():
        torch.testing.assert_close(at_once[key], expected, msg=lambda m, key=key: f"{key}: {m}")
    assert mixes(calls) == 1, "one mix for all layers"
    assert calls["mhr::mix_backward"] <= 1, "one gradient of all banks"
    assert sum(calls[f"mhr::route{more}"] for more in ("", "_all")) <= 1, "one routing for all layers"


@pytest.mark.parametrize("norm", [True, False])
def test_layers_that_share_a_bank_mix_it_once(norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside CUDA too: the encoder's bottlenecks and the decoder's have a bank each."""
    model = adapted("t5", method="hyperformer++", adapter="bottleneck", n_heads=None, norm=norm)
    with Counting() as count:
        found = results(model)
    assert count.calls["mhr::mix"] == count.calls["mhr::mix_backward"] == 2
    monkeypatch.setattr(together, "share_mix", lambda bank: False)
    alone = results(model)
    assert alone.keys() == found.keys()
    for key, expected in alone.items():
        torch.testing.assert_close(found[key], expected, msg=lambda m, key=key: f"{key}: {m}")


def test_factors_take_the_dtype_that_their_layer_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama", torch.bfloat16)
    alone, at_once, calls = both(model, monkeypatch)
    assert mixes(calls) == 1
    for key, expected in alone.items():
        error = (at_once[key].double() - expected.double()).norm() / expected.double().norm()
        assert error < 0.02, f"{key}: {error}"
    # In one pass, the sums of the factors' gradients are not rounded on their way to the banks.
    banks = [p for layer in model.mhr.layers.values() for p in layer.bank().values()]
    assert all(p.grad.dtype == torch.float32 and not torch.equal(p.grad, p.grad.bfloat16().float()) for p in banks)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_gradient_checkpointing(name: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks take the one mix of their call where they can, and mix again where a backward pass of their own would run through it."""
    model = adapted(name)
    alone = results(model)
    monkeypatch.setattr(together, "wanted", lambda bank: True)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with Counting() as count:
        at_once = results(model)
    for key, expected in alone.items():
        torch.testing.assert_close(at_once[key], expected)
    assert mixes(count.calls) == 1
    assert bool(count.calls["mhr::routed_linears_backward"]) is not reentrant
    again = results(model)
    assert all(torch.equal(again[key], at_once[key]) for key in alone)


def test_processes_that_train_together_get_their_gradients_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama")
    alone = results(model)
    monkeypatch.setattr(together, "wanted", lambda bank: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with Counting() as count:
        parts = results(model)
    assert count.calls["mhr::mix_backward"] == mixes(count.calls) == together.MIX_PARTS
    for key, expected in alone.items():
        torch.testing.assert_close(parts[key], expected)
    order: list[str] = []
    for name, layer in model.mhr.layers.items():
        layer.bank_a.register_hook(lambda grad, name=name: order.append(name))
    results(model)
    assert order.index(next(reversed(model.mhr.layers))) < len(order) // together.MIX_PARTS, (
        "the last layers' come first"
    )


def test_banks_that_are_not_at_hand_are_left_to_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama")
    bank = model.mhr
    weights = bank.weigh(bank.for_batch(IDS))
    assert together.mix_together(model, bank, weights) is None, "the CPU mixes layer by layer"
    monkeypatch.setattr(together, "wanted", lambda bank: True)
    assert together.mix_together(model, bank, weights) is not None
    layer = next(iter(bank.layers.values()))
    whole = layer.bank_a
    layer.bank_a = nn.Parameter(torch.empty(0))  # as a parameter is between the calls of a sharded layer
    assert together.mix_together(model, bank, weights) is None
    layer.bank_a = whole
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert together.mix_together(model, bank, weights) is not None, "processes with whole copies of the model"
    block = model.model.layers[0]
    kind = type(block)
    block.__class__ = type("FSDP" + kind.__name__, (kind,), {})  # as torch's fully_shard does
    assert together.mix_together(model, bank, weights) is None, "a sharded model"
    block.__class__ = kind
    assert together.mix_together(model, bank, weights) is not None, "whole again"
    model.model.layers[0] = type("FullyShardedDataParallel", (nn.Sequential,), {})(block)
    assert together.mix_together(model, bank, weights) is None, "a wrapped block"


def test_what_is_around_the_layers_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama")
    bank = model.mhr
    assert not together._is_sharded(model, bank)
    found = bank.around
    assert {child for *_, child in found} > set(bank.layers.values())
    assert not together._is_sharded(model, bank)
    assert bank.around is found
    model.model.layers = nn.ModuleList(model.model.layers)
    assert not together._is_sharded(model, bank)
    assert bank.around is not found
