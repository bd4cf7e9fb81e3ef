"""Routing is decided on the host once a batch: no layer's forward or backward pass reads a value of a tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.config import ADAPTERS, VIRTUAL
from mhr.layers import RoutedLayer
from mhr.methods import ROUTING_METHODS
from tests.models import random_batch, tiny_model
from tests.routing.contexts import with_contexts

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]

# What makes the host wait for a device, or gives a tensor a shape that depends on values.
WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "repeat_interleave", "equal")


@pytest.mark.parametrize("noise", ["off", "per_example", "per_task"])
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_layers_run_where_no_value_can_be_read(name: str, noise: str) -> None:
    model = tiny_model(name).train()
    bank = mhr.attach(model, AdapterConfig(n_heads=4, noise=noise), TASKS)
    run_without_values(bank, bank.layers.values())


@pytest.mark.parametrize("method", ROUTING_METHODS)
@pytest.mark.parametrize("adapter", [kind for kind in ADAPTERS if kind not in VIRTUAL])
@pytest.mark.parametrize("training", [False, True])
def test_every_method_runs_where_no_value_can_be_read(method: str, adapter: str, training: bool) -> None:
    row = ROUTING_METHODS[method]
    whole = adapter in ("ia3", "recurrent", "gated")
    if ((row.by_token or row.transforms) and adapter != "lora") or (not row.convex and whole):
        pytest.skip("which AdapterConfig refuses")
    if adapter == "gated" and (row.drawn or row.share is not None):
        pytest.skip("which AdapterConfig refuses")
    model = tiny_model("bert-encoder").train(training)
    bank = with_contexts(
        mhr.attach(
            model,
            AdapterConfig(method=method, adapter=adapter, granularity="coarse" if adapter == "recurrent" else "fine"),
            TASKS,
        )
    )
    for router in bank.groups.values():
        router.look()
    run_without_values(bank, [next(iter(bank.layers.values()))])


def run_without_values(bank: AdapterBank, layers: Iterable[RoutedLayer]) -> None:
    """Forward and backward passes on tensors without values, where reading one raises an error."""
    with FakeTensorMode(allow_non_fake_inputs=True), bank.routing(bank.for_batch(IDS).over(2)):
        with pytest.raises(DataDependentOutputException):
            bank.state.current().rows[0].item()
        bank.state.batch = bank.state.current().masked(torch.ones(8, 3))
        for layer in layers:
            x = torch.empty(8, 3, layer.in_features, requires_grad=True)
            y = layer(x)
            assert y.shape == (8, 3, layer.out_features)
            leaves = [x, *layer.bank().values(), *layer.router.parameters()]
            for leaf, gradient in zip(leaves, torch.autograd.grad(y.sum(), leaves), strict=True):
                assert gradient.shape == leaf.shape


class Counting(TorchDispatchMode):
    """Counts the calls of WAITS."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_a_step_waits_no_more_often_than_without_a_bank(name: str) -> None:
    model = tiny_model(name)
    inputs = random_batch(model)
    with Counting() as plain:
        model(**inputs).loss.backward()
    bank = mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
    batch = bank.for_batch(IDS)
    with Counting() as routed:
        model(**inputs, task_ids=batch).loss.backward()
    assert routed.calls == plain.calls
