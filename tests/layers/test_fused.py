"""Parts of a fused projection, each with a LoRA of its own: q and v of GPT-2's c_attn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse, load_adapter, plain_checkpoint, save_adapter
from mhr.errors import CheckpointError, ConfigError, MergeError, TargetError
from mhr.training.seeding import seed_bank
from tests.models import random_batch, tiny_model

TASKS = ["a", "b"]
IDS = ["a", "b", "a", "b"]
QV: dict[str, Any] = {"targets": ["attn.c_attn"], "parts": ["q", "v"], "rank": 4, "alpha": 6.0}


def adapted(**settings: Any) -> tuple[Any, AdapterBank]:
    model = tiny_model("gpt2").double()
    bank = mhr.attach(model, AdapterConfig(**{**QV, **settings}), TASKS)
    generator = torch.Generator().manual_seed(3)
    for layer in bank.layers.values():
        for factor in layer.bank().values():
            factor.data.copy_(torch.randn(factor.shape, generator=generator))
    return model, bank


def test_each_part_has_a_lora_of_its_own() -> None:
    """By hand: y = base(x) with alpha / rank (x A_q) B_q added to q, (x A_v) B_v to v, and nothing to k; outputs and gradients."""
    _, bank = adapted(method="shared")
    layer = next(iter(bank.layers.values()))
    size = layer.out_features // 3
    x = torch.randn(4, 5, layer.in_features, dtype=torch.float64, requires_grad=True)
    a, b = layer.bank_a, layer.bank_b
    with bank.routing(IDS):
        y = layer(x)
    (q, v), scaling = ((x @ a[0, 0][:, r]) @ b[0, 0][r] for r in (slice(0, 2), slice(2, 4))), 6.0 / 4
    parts = F.pad(q[..., :size], (0, 2 * size)) + F.pad(v[..., 2 * size :], (2 * size, 0))
    expected = layer.base(x) + scaling * parts
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    pull = torch.randn_like(y)
    found, by_hand = (torch.autograd.grad((out * pull).sum(), (x, a, b), retain_graph=True) for out in (y, expected))
    for one, other in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert not found[2][0, 0, :2, size:].any()
    assert not found[2][0, 0, 2:, : 2 * size].any()


@pytest.mark.parametrize(
    "settings",
    [{"method": "adamix", "n_skills": 3}, {"method": "adamix", "dropout": 0.1}, {"method": "mhr", "n_heads": 2}],
)
def test_k_stays_as_it_was_through_training_and_storing(settings: dict[str, Any], tmp_path: Path) -> None:
    model, bank = adapted(**settings)
    for layer in bank.layers.values():
        layer.reset()
    size = next(iter(bank.layers.values())).out_features // 3
    model.train()
    optimizer = torch.optim.AdamW(bank.adapter_parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**random_batch(model), task_ids=IDS).loss.backward()
        optimizer.step()
    for layer in collapse(checkpoint_of(model, "tiny"), None).layers.values():
        moved = (layer.a @ layer.b).view(-1, 3, size).abs().sum((0, 2)) > 0
        assert moved.tolist() == [True, False, True]
    folder = save_adapter(model.eval(), tmp_path / "adapter", base="tiny")
    inputs = random_batch(model)
    again = tiny_model("gpt2").double()
    load_adapter(folder, again)
    torch.testing.assert_close(again(**inputs, task_ids=IDS).logits, model(**inputs, task_ids=IDS).logits)


def test_the_average_trains_the_same_parts_alone() -> None:
    model, bank = adapted(method="poly")
    for layer in bank.layers.values():
        layer.reset()
    plain = plain_checkpoint(collapse(checkpoint_of(model, "tiny"), None))
    assert plain.config.parts == ["q", "v"]


def test_values_outside_of_the_parts_are_not_loaded(tmp_path: Path) -> None:
    model, bank = adapted(method="poly")  # which has some everywhere
    folder = save_adapter(model, tmp_path / "adapter", base="tiny")
    other = tiny_model("gpt2").double()
    with pytest.raises(CheckpointError, match=r"layer '.*c_attn' of .* has values outside of its parts \['q', 'v'\]"):
        load_adapter(folder, other)
    assert not hasattr(other, "mhr")


def test_a_whole_projection_has_no_mask() -> None:
    _, bank = adapted(parts=None)
    layer = next(iter(bank.layers.values()))
    given: dict[str, Tensor] = layer.factors()
    assert all(given[name] is factor for name, factor in layer.bank().items())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parts": ["q", "v"], "rank": 3}, r"parts is \['q', 'v'\], and rank 3 does not divide by their number"),
        ({"parts": ["q", "q"]}, "expected each part once"),
        ({"parts": []}, "expected each part once, and at least one"),
        ({"parts": ["q"], "adapter": "ia3"}, "which is for lora, but adapter is 'ia3'"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(**settings)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("gpt2", {"parts": ["q", "vv"]}, "parts has 'vv', which layer '.*c_attn' does not have: did you mean 'v'"),
        ("gpt2", {"targets": ["c_fc"]}, "layer '.*c_fc' is not known to be a fused projection: leave parts out"),
        ("t5", {"targets": ["q"]}, "layer '.*q' is not known to be a fused projection"),
    ],
)
def test_layers_without_such_parts(name: str, settings: dict[str, Any], said: str) -> None:
    model = tiny_model(name)
    with pytest.raises(TargetError, match=said):
        mhr.attach(model, AdapterConfig(**{**QV, "n_heads": 1, **settings}), TASKS)
    assert not hasattr(model, "mhr")


def test_skills_of_parts_begin_as_drawn(tmp_path: Path) -> None:
    model, _ = adapted(method="poly")
    with pytest.raises(MergeError, match="init_skills cannot start skills of parts of a layer"):
        seed_bank(model, [str(tmp_path)])
