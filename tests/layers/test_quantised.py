"""Bases quantised by torchao and bitsandbytes: trained, saved and differentiated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import mhr
from mhr import AdapterConfig
from mhr.adapters import load_adapter, save_adapter
from mhr.backbones import load_backbone
from mhr.loading import Loading
from tests.models import random_batch, randomise, tiny_model
from tests.tokenizers import make_word_tokenizer

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


def quantised(library: str) -> PreTrainedModel:
    """A tiny Llama whose projections hold 8-bit integers."""
    model = tiny_model("llama")
    package = pytest.importorskip(library)
    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, name: name.endswith("_proj"))
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith("_proj"):
            layer = package.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False)
            layer.weight = package.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False).to(
                "cpu"
            )
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
    return model


@pytest.mark.parametrize("adapter", ["lora", "ia3", "bottleneck"])
@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_gradients_are_the_same_in_training_and_in_evaluation_mode(library: str, adapter: str) -> None:
    """Fisher information and gradient alignment ask for gradients in evaluation mode."""
    model = quantised(library)
    bank = mhr.attach(model, AdapterConfig(n_heads=4, adapter=adapter), TASKS)
    randomise(bank)
    trained = [*bank.adapter_parameters(), *bank.router_parameters()]
    both = []
    for mode in (True, False):
        model.train(mode)
        both.append(torch.autograd.grad(model(**random_batch(model), task_ids=IDS).loss, trained))
    for got, expected in zip(*both, strict=True):
        assert expected.any()
        torch.testing.assert_close(got, expected, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_an_adapter_on_a_quantised_base_is_saved_and_read(library: str, tmp_path: Path) -> None:
    model = quantised(library)
    randomise(mhr.attach(model, AdapterConfig(n_heads=4), TASKS))
    save_adapter(model, tmp_path / "adapter", base="tiny")
    other = quantised(library)
    load_adapter(tmp_path / "adapter", other)
    inputs = random_batch(model)
    with torch.no_grad():
        assert torch.equal(other(**inputs, task_ids=IDS).logits, model(**inputs, task_ids=IDS).logits)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_gradients_are_the_same_after_an_evaluation(bits: str, width: int, tmp_path: Path) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights in evaluation mode, and their product has no gradient any more."""
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", hidden_size=width).save_pretrained(tmp_path)
    make_word_tokenizer().save_pretrained(tmp_path)
    both = []
    for evaluated in (False, True):
        model = load_backbone(tmp_path, loading=Loading(quantize=bits))[0]
        bank = mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
        randomise(bank)
        if evaluated:
            with torch.no_grad():
                model.eval()(**random_batch(model), task_ids=IDS)
        model.train()
        trained = [*bank.adapter_parameters(), *bank.router_parameters()]
        both.append(torch.autograd.grad(model(**random_batch(model), task_ids=IDS).loss, trained))
    for got, expected in zip(*both, strict=True):
        assert expected.any()
        assert torch.equal(got, expected)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_gradients_are_those_of_the_dequantised_weights(bits: str, tmp_path: Path) -> None:
    """Against a plain model in float64 with the weights that the quantised layers stand for."""
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", hidden_size=64).save_pretrained(tmp_path)
    make_word_tokenizer().save_pretrained(tmp_path)
    found = []
    for exact in (True, False):
        model = load_backbone(tmp_path, loading=Loading(quantize=bits))[0]
        model = model.dequantize().double() if exact else model
        bank = mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
        randomise(bank)
        model.train()
        model(**random_batch(model), task_ids=IDS).loss.backward()
        found.append({name: p.grad.double() for name, p in model.named_parameters() if p.requires_grad})
    exact, got = found
    assert exact.keys() == got.keys()
    for name, gradient in exact.items():
        assert gradient.any(), name
        assert (got[name] - gradient).norm() < 1e-4 * gradient.norm(), name
