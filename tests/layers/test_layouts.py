"""Layers whose rows are not those of the batch: told how they are, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterConfig
from mhr.errors import TargetError
from tests.architectures import build, inputs_for
from tests.models import randomise

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


@pytest.mark.parametrize(
    ("kind", "model_type", "target", "reason", "advice"),
    [
        ("seq2seq", "switch_transformers", "wi", "part of an expert", "use targets such as q, k, v, o"),
        ("seq2seq", "nllb-moe", "fc1", "part of an expert", "use targets such as k_proj, v_proj, q_proj, out_proj"),
        ("causal", "mixtral", "gate_up_proj", "weights of several experts", "use targets such as q_proj"),
        ("causal", "mamba", "dt_proj", "not always called", "use targets such as in_proj, lm_head"),
        ("causal", "mamba", "out_proj", "not always called", "use targets such as in_proj, lm_head"),
        ("causal", "mamba2", "out_proj", "not always called", "use targets such as in_proj, lm_head"),
        ("causal", "reformer", "query_key", "not always called", "use targets such as query, key, value"),
        ("causal", "rwkv", "attention.output", "not always called", "use targets such as key, value, receptance"),
        ("classifier", "deberta", "pos_proj", "relative positions", "use targets such as in_proj, dense"),
    ],
)
def test_layers_that_cannot_be_routed_are_refused_when_attaching(
    kind: str, model_type: str, target: str, reason: str, advice: str
) -> None:
    model = build(kind, model_type)
    before = list(model.state_dict())
    with pytest.raises(TargetError, match=rf"{target}.*{reason}.*{advice}") as caught:
        mhr.attach(model, AdapterConfig(targets=[target]), TASKS)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == before


def test_default_targets_hold_no_experts() -> None:
    model = build("seq2seq", "switch_transformers")
    bank = mhr.attach(model, AdapterConfig(), TASKS)
    assert not any("expert" in name for name in bank.layers)


class Backwards(nn.Module):
    """Code of someone else's, which turns its input round for one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu().transpose(0, 1)).transpose(0, 1)


def test_a_model_that_is_not_known_is_not_guessed() -> None:
    """Where positions and examples are as many, a layer that was never seen with another length is refused."""
    model = Backwards()
    randomise(mhr.attach(model, AdapterConfig(targets=["first", "second"]), TASKS))
    with pytest.raises(TargetError, match=r"'first' got x \[4, 4, 8\] for 4 task ids: .* another length than B"):
        model(torch.randn(4, 4, 8), task_ids=IDS)
    with pytest.raises(TargetError, match=r"'second' got x \[3, 4, 8\] for 4 task ids"):
        model(torch.randn(4, 3, 8), task_ids=IDS)
    with pytest.raises(TargetError, match=r"'second' got x \[4, 4, 8\] for 4 task ids"):  # and `first` is known by now
        model(torch.randn(4, 4, 8), task_ids=IDS)
    assert model(torch.randn(4, 4, 8), task_ids=["rte"] * 4).shape == (4, 4, 8)


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class Second(nn.Linear):
    def forward(self, x: Tensor, scale: float) -> Any:
        return super().forward(x) * scale


@pytest.mark.parametrize("adapter", ["lora", "ia3", "bottleneck"])
def test_a_linear_in_name_only_is_refused(adapter: str) -> None:
    config = AdapterConfig(adapter=adapter, targets=["1"])
    model = nn.Sequential(nn.Linear(8, 8), Pair(8, 8))
    mhr.attach(model, config, TASKS)
    with pytest.raises(TargetError, match=r"layer '1' is a Pair that turns \[2, 3, 8\] into a tuple"):
        model(torch.randn(2, 3, 8), task_ids=IDS[:2])
    other = nn.ModuleList([nn.Linear(8, 8), Second(8, 8)])
    bank = mhr.attach(other, config, TASKS)
    with (
        bank.routing(IDS[:2]),
        pytest.raises(TargetError, match="layer '1' is a Second that is called with more than x"),
    ):
        other[1](torch.randn(2, 3, 8), 2.0)


def test_relative_positions_have_the_gradient_of_each_row_alone() -> None:
    """DeBERTa-v3: queries and keys of the positions, which all rows share, are routed as each row is."""
    model = build("classifier", "deberta-v2").double()
    bank = mhr.attach(model, AdapterConfig(n_heads=4, targets=["query_proj", "key_proj"]), TASKS)
    randomise(bank)
    inputs = inputs_for("classifier", 4, 4)
    trained = [*bank.adapter_parameters(), *bank.router_parameters()]
    mixed = torch.autograd.grad(model(**inputs, task_ids=IDS).logits.square().sum(), trained)
    rows = [model(**{k: v[i : i + 1] for k, v in inputs.items()}, task_ids=[t]).logits for i, t in enumerate(IDS)]
    alone = torch.autograd.grad(torch.cat(rows).square().sum(), trained)
    assert any(g.any() for g in alone)
    for got, expected in zip(mixed, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    mhr.detach(model)
    assert not any("disentangled_attention_bias" in vars(module) for module in model.modules())
