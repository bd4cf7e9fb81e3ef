"""Decoders of many architectures with banks by default and on all Linear layers: a training step, a mixed batch, what merging writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import save_adapter
from mhr.errors import CheckpointError
from mhr.merging import merge
from tests.architectures import build, inputs_for
from tests.models import randomise
from tests.tokenizers import make_word_tokenizer

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]

DENSE = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt",
    "bloom", "falcon", "mpt", "codegen", "cohere", "cohere2", "olmo", "olmo2", "granite", "starcoder2", "stablelm", "smollm3", "glm4",
    "nemotron", "exaone4", "ministral3",
]  # fmt: skip
EXPERTS = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen2_moe", "olmoe", "granitemoe", "llama4_text"]
OTHERS = ["qwen3_next", "jamba", "lfm2", "mamba"]  # with mixers beside attention, or in its place
EVERY = [*DENSE, *EXPERTS, *OTHERS]
SAMPLE = ["llama", "gpt2", "gemma3_text", "falcon", "mixtral", "deepseek_v3"]


def adapted(model: PreTrainedModel, targets: Any, **settings: Any) -> AdapterBank:
    bank = mhr.attach(
        model, AdapterConfig(**{"n_heads": 2, "n_skills": 3, "rank": 2, "targets": targets, **settings}), TASKS
    )
    randomise(bank)
    return bank


def loss_of(model: PreTrainedModel, **more: Any) -> Tensor:
    inputs = inputs_for("causal", 4, 6)
    return model(**inputs, labels=inputs["input_ids"], task_ids=IDS, **more).loss


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def logits(model: Any, **more: Any) -> Tensor:
    return model(**inputs_for("causal", 4, 6), **more).logits


def close(got: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("targets", [None, "all-linear"], ids=["default", "all-linear"])
def test_trained_mixed_merged_and_loaded_elsewhere(targets: Any, name: str, tmp_path: Path) -> None:
    if (targets, name) == (None, "mamba"):
        pytest.skip("has no attention; refused: test_structure.py")
    model = build("causal", name)
    base = tmp_path / "base"
    model.save_pretrained(base)
    make_word_tokenizer().save_pretrained(base)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = logits(model)
    bank = adapted(model, targets)
    assert any("not adapted: " in note and "experts" in note for note in bank.notes) == (
        name in [*EXPERTS, "qwen3_next", "jamba"]
    )

    first = loss_of(model)
    first.backward()
    trained = [*bank.adapter_parameters(), *bank.router_parameters()]
    assert all(p.grad is not None and p.grad.any() for p in trained)
    squares = sum(p.grad.square().sum().item() for p in trained)
    torch.optim.SGD(trained, lr=1e-3 / squares).step()  # by which a straight line would fall by 1e-3
    assert loss_of(model) < first
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if key in before)

    mixed = logits(model, task_ids=IDS)
    inputs = inputs_for("causal", 4, 6)
    with torch.no_grad():
        rows = [model(**{k: v[i : i + 1] for k, v in inputs.items()}, task_ids=[t]).logits for i, t in enumerate(IDS)]
    close(mixed, torch.cat(rows))

    routed = logits(model, task_ids=["rte"] * 4)
    assert (routed - mixed).abs().max() > 1e-4 * mixed.abs().max()
    save_adapter(model, tmp_path / "adapter", base=str(base))
    whole = merge(tmp_path / "adapter", method="task", task="rte", to="model", output=tmp_path / "whole")
    again = AutoModelForCausalLM.from_pretrained(base)
    close(logits(again), plain)
    close(logits(AutoModelForCausalLM.from_pretrained(whole)), routed)
    to_peft = {"method": "task", "task": "rte", "to": "peft-lora", "output": tmp_path / "lora"}
    if targets and name in ("deepseek_v3", "qwen3_next"):
        with pytest.raises(CheckpointError, match=r"PEFT would put the LoRA of layer '.*' on the experts of"):
            merge(tmp_path / "adapter", **to_peft)
        assert not (tmp_path / "lora").exists()
        return
    close(logits(peft.PeftModel.from_pretrained(again, merge(tmp_path / "adapter", **to_peft))), routed)


@pytest.mark.parametrize("name", EVERY)
def test_gradient_checkpointing(name: str) -> None:
    model = build("causal", name).double().train()
    model.set_experts_implementation("eager")  # the grouped product of experts has no float64
    adapted(model, "all-linear")
    assert model.supports_gradient_checkpointing
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    got = gradients(model)
    assert got.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient.any(), key
        torch.testing.assert_close(got[key], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SAMPLE)
def test_autocast(name: str) -> None:
    model = build("causal", name).train()
    adapted(model, "all-linear")
    expected = gradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(model)
        loss = loss_of(model)
    assert (loss - loss_of(model)).abs() < 0.02
    for key, gradient in expected.items():
        assert got[key].dtype == torch.float32
        assert (got[key] - gradient).norm() < 0.1 * gradient.norm(), key


@pytest.mark.parametrize("name", SAMPLE)
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    model = build("causal", name).train()
    adapted(model, "all-linear")
    expected = gradients(model)
    model.zero_grad()
    inputs = inputs_for("causal", 4, 6)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(**inputs, labels=inputs["input_ids"], task_ids=model.mhr.for_batch(IDS), use_cache=False).loss.backward()
    for key, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[key], rtol=1e-4, atol=1e-5)
