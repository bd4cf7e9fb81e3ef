"""FiLM against its equation in plain torch, packed rows, folding into weights, and what has no place for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse_task, fold_into, save_peft
from mhr.adapters.plain import attach_plain
from mhr.errors import CheckpointError, ConfigError, MergeError, TargetError
from mhr.layers.parameter_groups import parameter_groups
from mhr.merging.mera import combine_mera
from mhr.training.seeding import _put
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


def adapted(model: Any = None, **settings: Any) -> tuple[Any, AdapterBank]:
    model = tiny_model("bert-encoder").double() if model is None else model
    bank = mhr.attach(model, AdapterConfig(**{"method": "private", "adapter": "film", **settings}), TASKS)
    randomise(bank)
    return model, bank


@pytest.mark.parametrize("settings", [{}, {"method": "mhr", "n_heads": 4, "n_skills": 3}], ids=["private", "mhr"])
def test_outputs_and_every_gradient_are_those_of_the_equation(settings: dict[str, Any]) -> None:
    _, bank = adapted(**settings)
    layer = next(iter(bank.layers.values()))
    x = torch.randn(4, 5, 32, dtype=torch.float64, requires_grad=True)
    leaves = {"x": x, **layer.bank(), **dict(layer.router.named_parameters())}
    weights = layer.router(bank.for_batch(TASKS))
    expected = []
    for example, task in zip(x, IDS, strict=True):
        w = weights[TASKS.index(task)]
        g, h = (torch.einsum("hs,hso->ho", w, t.squeeze(2)).flatten() for t in layer.bank().values())
        expected.append((1 + g) * layer.base(example) + h)
    stated = torch.stack(expected)
    with bank.routing(IDS):
        found = layer(x)
    torch.testing.assert_close(found, stated, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(stated)
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, stated))
    for name, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


def test_tokens_of_packed_rows_have_the_vectors_of_their_task() -> None:
    _, bank = adapted()
    layer = next(iter(bank.layers.values()))
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    batch = bank.for_batch(["rte", "copa", "boolq"])
    lengths = [3, 3, 4]
    offsets = torch.tensor([0, 3, 6, 10])
    with bank.routing(batch.packed(offsets, (2, 5))):
        packed = layer(x).view(10, 32)
    for task, part, own in zip(
        ["rte", "copa", "boolq"], packed.split(lengths), x.view(10, 32).split(lengths), strict=True
    ):
        with bank.routing([task]):
            torch.testing.assert_close(layer(own[None])[0], part)


def test_it_begins_as_the_base_model_and_decays_to_it() -> None:
    model = tiny_model("bert-encoder")
    batch = random_batch(model)
    with torch.no_grad():
        before = model(**batch)[0]
        bank = mhr.attach(model, AdapterConfig(method="private", adapter="film"), TASKS)
        torch.testing.assert_close(model(**batch, task_ids=IDS)[0], before)
    names = {name for name, _ in model.named_parameters()}
    groups = {g.name: g for g in parameter_groups(model, lr=1.0, router_lr=1.0, weight_decay=0.5, decaying=names)}
    assert {id(p) for p in groups["adapters"].parameters} == set(map(id, bank.adapter_parameters()))


def test_it_folds_into_weights_and_biases() -> None:
    base = tiny_model("bert-encoder").double()
    model, _ = adapted(copy.deepcopy(base))
    plain = collapse_task(checkpoint_of(model, "tiny"), "copa")
    assert plain.kind == "film"
    batch = random_batch(base)
    with torch.no_grad():
        routed = model(**batch, task_ids=["copa"] * 4)[0]
        worn = copy.deepcopy(base)
        attach_plain(worn, plain)
        torch.testing.assert_close(worn(**batch)[0], routed)
        fold_into(base, plain)
        torch.testing.assert_close(base(**batch)[0], routed)


def test_it_folds_into_transposed_weights() -> None:
    base = tiny_model("gpt2").double()
    model, _ = adapted(copy.deepcopy(base))
    batch = random_batch(base)
    with torch.no_grad():
        fold_into(base, collapse_task(checkpoint_of(model, "tiny"), "rte"))
        torch.testing.assert_close(base(**batch).logits, model(**batch, task_ids=["rte"] * 4).logits)


def test_a_layer_without_a_bias_takes_no_shift() -> None:
    base = tiny_model("t5")
    model, _ = adapted(copy.deepcopy(base))
    before = {name: t.clone() for name, t in base.state_dict().items()}
    with pytest.raises(MergeError, match=r"has no bias, which could take up the shift of a FiLM: keep it .*--to mhr"):
        fold_into(base, collapse_task(checkpoint_of(model, "tiny"), "rte"))
    assert all(torch.equal(t, before[name]) for name, t in base.state_dict().items())


def test_a_skill_is_filled_with_one_that_was_trained() -> None:
    model, bank = adapted()
    name, layer = next(iter(bank.layers.items()))
    given = collapse_task(checkpoint_of(model, "tiny"), "copa").layers[name]
    with torch.no_grad():
        _put(layer, 0, given)
    assert torch.equal(layer.bank_scale[0, 0], layer.bank_scale[0, 2])
    assert torch.equal(layer.bank_shift[0, 0], layer.bank_shift[0, 2])


def test_what_has_no_place_for_it_says_so(tmp_path: Path) -> None:
    model, _ = adapted()
    plain = collapse_task(checkpoint_of(model, "tiny"), "copa")
    with pytest.raises(CheckpointError, match="PEFT has no film adapters: write it as an adapter of ours"):
        save_peft(plain, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
    with pytest.raises(
        MergeError,
        match="mera aligns hidden units of LoRAs and bottlenecks, of which a FiLM is none: use uniform or weighted",
    ):
        combine_mera([plain, plain], [0.5, 0.5])
    with pytest.raises(TargetError, match="n_heads is 5, which does not divide the 32 output features"):
        adapted(method="mhr", n_heads=5)
    for setting, said in (
        ({"share": "up"}, "share is 'up', but"),
        ({"dropout": 0.5}, "dropout is 0.5, which is for lora"),
    ):
        with pytest.raises(ConfigError, match=said):
            AdapterConfig(**{"method": "hydra", "adapter": "film", **setting})
