"""Attaching and detaching: what it does to the model, what it leaves alone, and what still works afterwards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.errors import ConfigError, TargetError, TaskError
from mhr.layers import RoutedIA3, RoutedLinear
from tests.models import GENERATORS, MODELS, random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


def attached(name: str, **config: Any) -> tuple[PreTrainedModel, AdapterBank]:
    model = tiny_model(name)
    bank = mhr.attach(model, AdapterConfig(**{"n_heads": 4, **config}), TASKS)
    randomise(bank)
    return model, bank


def anatomy(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that attaching might change."""
    return {
        "modules": {name: (id(module), module.training) for name, module in model.named_modules()},
        "attributes": {name: sorted(module.__dict__) for name, module in model.named_modules()},
        "own methods": {key: id(value) for key, value in model.__dict__.items() if callable(value)},
        "parameters": {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        "buffers": {name: id(b) for name, b in model.named_buffers()},
        "tensors": {name: t.clone() for name, t in model.state_dict().items()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._state_dict_hooks))
            for name, module in model.named_modules()
        },
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    tensors, others = before.pop("tensors"), after.pop("tensors")
    assert list(before) == list(after)
    for key in before:
        assert before[key] == after[key], key
    assert list(tensors) == list(others)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
@pytest.mark.parametrize("name", MODELS)
def test_a_new_bank_changes_no_output_and_everything_of_it_gets_a_gradient(name: str, adapter: str) -> None:
    model = tiny_model(name)
    batch = random_batch(model)
    expected = model(**batch)
    bank = mhr.attach(model, AdapterConfig(n_heads=4, adapter=adapter), TASKS)
    out = model(**batch, task_ids=IDS)
    torch.testing.assert_close(out[0], expected[0])
    randomise(bank)
    out = model(**batch, task_ids=IDS)
    assert not torch.allclose(out[0], expected[0])
    out[0].square().sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    parts = ("bank_a", "bank_b", "bank_v", "logits", "classifier.weight", "classifier.bias")
    assert all(n.endswith(parts) for n in trained)
    own = [*bank.adapter_parameters(), *bank.router_parameters()]
    assert len(own) == len(bank.layers) * (3 if adapter == "lora" else 2)
    for n, p in model.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == (n in trained), n


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
@pytest.mark.parametrize("name", MODELS)
def test_detach_restores_the_model_exactly(name: str, adapter: str) -> None:
    model = tiny_model(name).train()
    next(model.parameters()).requires_grad_(False)
    next(m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)).eval()
    batch = random_batch(model)
    before, expected = anatomy(model), model(**batch)[0]
    bank = mhr.attach(model, AdapterConfig(n_heads=4, adapter=adapter), TASKS)
    randomise(bank)
    model(**batch, task_ids=IDS)[0].square().sum().backward()
    if name in GENERATORS:
        model.generate(batch["input_ids"], task_ids=IDS, max_new_tokens=1)
    mhr.detach(model)
    assert_same(before, anatomy(model))
    assert torch.equal(model(**batch)[0], expected)
    assert not hasattr(model, "mhr")


@pytest.mark.parametrize(
    ("settings", "tasks", "error"),
    [
        ({"n_heads": 5}, TASKS, TargetError),
        ({"targets": ["wi_0", "nothing"]}, TASKS, TargetError),
        ({"granularity": "block", "targets": ["q", "lm_head"]}, TASKS, TargetError),
        ({"modules_to_save": ["lm_heat"]}, TASKS, TargetError),
        ({}, ["boolq", "boolq"], TaskError),
        ({}, [], TaskError),
    ],
)
def test_a_refused_bank_leaves_the_model_as_it_was(settings: dict[str, Any], tasks: list[str], error: type) -> None:
    model = tiny_model("t5")
    before = anatomy(model)
    with pytest.raises(error):
        mhr.attach(model, AdapterConfig(**settings), tasks)
    assert_same(before, anatomy(model))


def test_a_second_bank_is_refused_and_so_is_taking_off_none() -> None:
    model, _ = attached("llama")
    with pytest.raises(ConfigError, match=r"has a bank already: call mhr\.detach"):
        mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
    mhr.detach(model)
    with pytest.raises(ConfigError, match="has no bank"):
        mhr.detach(model)
    mhr.attach(model, AdapterConfig(n_heads=4), TASKS)


def test_the_model_stays_what_it_is() -> None:
    model, bank = attached("t5")
    assert type(model) is type(tiny_model("t5"))
    assert isinstance(model, PreTrainedModel)
    assert model.mhr is bank
    assert all(isinstance(layer, RoutedLinear) for layer in bank.layers.values())
    assert {name: model.get_submodule(name) for name in bank.layers} == bank.layers
    assert bank.layers["encoder.block.0.layer.0.SelfAttention.q"].weight.shape == (32, 32)


def test_train_and_eval_reach_the_bank_and_the_layers() -> None:
    model, bank = attached("t5")
    assert not bank.training
    model.train()
    assert bank.training
    assert all(layer.training and layer.base.training for layer in bank.layers.values())


def test_modules_to_save_are_trained_whole() -> None:
    model, bank = attached("bert")
    assert list(bank.saved) == ["classifier"]
    assert all(p.requires_grad for p in model.classifier.parameters())
    assert "modules.classifier.weight" in bank.tensors()
    mhr.detach(model)
    bank = mhr.attach(model, AdapterConfig(modules_to_save=["bert.pooler", "classifier"], n_heads=4), TASKS)
    assert [id(p) for p in bank.saved_parameters()] == [
        id(p) for m in (model.bert.pooler, model.classifier) for p in m.parameters()
    ]


def test_layers_of_modules_to_save_are_not_adapted() -> None:
    model = tiny_model("bert")
    config = AdapterConfig(targets=["dense"], modules_to_save=["bert.pooler"], n_heads=4)
    assert "bert.pooler.dense" not in mhr.attach(model, config, TASKS).layers
    mhr.detach(model)
    with pytest.raises(TargetError, match="matches no layer"):
        mhr.attach(model, AdapterConfig(targets=["pooler.dense"], modules_to_save=["bert.pooler"], n_heads=4), TASKS)


def test_tensors_name_everything_that_a_checkpoint_needs() -> None:
    model, bank = attached("llama", granularity="coarse", targets=["q_proj"])
    names = [f"layers.model.layers.{i}.self_attn.q_proj.bank_{ab}" for i in (0, 1) for ab in "ab"]
    assert list(bank.tensors()) == [*names, "routers.all.logits"]


@pytest.mark.parametrize("name", MODELS)
def test_a_deep_copy_is_a_model_of_its_own(name: str) -> None:
    model, bank = attached(name)
    batch = random_batch(model)
    expected = model(**batch, task_ids=IDS)[0]
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**batch, task_ids=IDS)[0], expected)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert {name: twin.get_submodule(name) for name in twin.mhr.layers} == twin.mhr.layers
    randomise(twin.mhr, seed=1)
    twin.mhr.set_tasks(["rte", "wic"])
    changed = twin(**batch, task_ids=["wic"] * 4)[0]
    assert not torch.equal(changed, expected)
    assert torch.equal(model(**batch, task_ids=IDS)[0], expected)
    assert bank.tasks == TASKS
    if name in GENERATORS:
        out = twin.generate(batch["input_ids"], task_ids=["wic"] * 4, max_new_tokens=2)
        assert out.shape[0] == 4
    mhr.detach(twin)
    assert torch.equal(model(**batch, task_ids=IDS)[0], expected)
    assert torch.equal(twin(**batch)[0], tiny_model(name)(**batch)[0])


@pytest.mark.parametrize("name", MODELS)
def test_a_state_dict_fits_the_model_with_and_without_a_bank(name: str) -> None:
    model, bank = attached(name)
    state = model.state_dict()
    plain = tiny_model(name, seed=1)
    assert set(plain.state_dict()) <= set(state)
    assert not any(".base." in key for key in state)

    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert missing == []
    assert all("bank_" in key or key.startswith("mhr.") for key in unexpected)
    mhr.attach(plain, bank.config, TASKS)
    plain.load_state_dict(state)
    batch = random_batch(model)
    assert torch.equal(plain(**batch, task_ids=IDS)[0], model(**batch, task_ids=IDS)[0])

    other = tiny_model(name)
    model.load_state_dict(other.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="bank_a"):
        model.load_state_dict(other.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_save_pretrained_writes_the_base_model_under_its_own_names(name: str, tmp_path: Path) -> None:
    model, _ = attached(name)
    model.save_pretrained(tmp_path)
    base = type(model).from_pretrained(tmp_path)
    batch = random_batch(model)
    assert torch.equal(base(**batch)[0], tiny_model(name)(**batch)[0])


def test_a_float64_model_gets_a_float64_bank() -> None:
    model = tiny_model("t5").double()
    bank = mhr.attach(model, AdapterConfig(method="random", n_heads=4), TASKS)
    assert {p.dtype for p in bank.parameters()} | {p.dtype for p in bank.adapter_parameters()} == {torch.float64}
    assert next(iter(bank.groups.values())).table().dtype == torch.float64
    assert model(**random_batch(model), task_ids=IDS).logits.dtype == torch.float64


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_a_half_precision_model_gets_a_float32_bank(adapter: str) -> None:
    model = tiny_model("t5").to(torch.bfloat16)
    bank = mhr.attach(model, AdapterConfig(n_heads=4, adapter=adapter), TASKS)
    assert {p.dtype for p in [*bank.adapter_parameters(), *bank.router_parameters()]} == {torch.float32}
    out = model(**random_batch(model), task_ids=IDS)
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in bank.adapter_parameters())


@pytest.mark.parametrize("method", ["mhr", "uniform", "private", "random"])
def test_an_adapted_model_can_be_cast(method: str) -> None:
    model, _ = attached("t5", method=method)
    batch = random_batch(model)
    expected = model(**batch, task_ids=IDS).logits
    torch.testing.assert_close(model.double()(**batch, task_ids=IDS).logits.float(), expected, rtol=1e-4, atol=1e-4)
    rounded = model.to(torch.bfloat16)(**batch, task_ids=IDS).logits
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, rtol=0.1, atol=0.5)


def test_banks_are_made_on_the_device_of_their_layer() -> None:
    model = tiny_model("t5").to("meta")
    bank = mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
    assert {t.device.type for t in bank.tensors().values()} == {"meta"}
    assert bank.for_batch(IDS).rows.device.type == "meta"


def test_ia3_scales_every_architecture() -> None:
    for name in MODELS:
        _, bank = attached(name, adapter="ia3")
        assert all(isinstance(layer, RoutedIA3) for layer in bank.layers.values())


@pytest.mark.parametrize("whole", [True, False])
def test_layers_on_several_devices_or_none_are_refused(whole: bool) -> None:
    model = tiny_model("llama")
    if whole:
        cpu_offload(model, execution_device="cpu")
    else:
        cpu_offload(model.model.layers[1], execution_device="cpu")
    places = "no device \\(offloaded\\)" if whole else "cpu and no device \\(offloaded\\)"
    with pytest.raises(
        TargetError, match=f"the layers to adapt lie on {places}, and a bank .* lies on one device: load"
    ):
        mhr.attach(model, AdapterConfig(), ["a"])
    assert not hasattr(model, "mhr")
