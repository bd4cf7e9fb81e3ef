"""Folding into base weights: dtypes, biases, and layers that cannot take it."""

from __future__ import annotations

import pytest
import torch

from mhr import AdapterConfig, attach
from mhr.adapters import (
    BaseModel,
    IA3Vector,
    LoraFactors,
    PlainAdapter,
    attach_plain,
    checkpoint_of,
    collapse,
    fold_into,
)
from mhr.errors import CheckpointError, MergeError
from tests.models import random_batch, tiny_model

ANY = BaseModel("tiny")
QUERY = "bert.encoder.layer.0.attention.self.query"


def lora(name: str, sizes: tuple[int, int] = (32, 32), **modules) -> PlainAdapter:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(sizes[0], 4, generator=generator), torch.randn(4, sizes[1], generator=generator)
    return PlainAdapter({name: LoraFactors(a, b, 2.0)}, ANY, modules)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_product_is_rounded_once(dtype):
    model = tiny_model("bert").to(dtype)
    before = model.get_submodule(QUERY).weight.detach().clone()
    plain = lora(QUERY)
    fold_into(model, plain)
    factors = plain.layers[QUERY]
    exact = before.double() + 0.5 * (factors.a.double() @ factors.b.double()).T
    after = model.get_submodule(QUERY).weight
    assert after.dtype == dtype
    half_a_step = 0.51 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-7  # factors are float32
    assert ((after.double() - exact).abs() <= half_a_step * exact.abs() + 1e-6).all()


def test_conv1d_holds_its_weight_transposed():
    model = tiny_model("gpt2")
    name = "transformer.h.1.attn.c_attn"
    layer = model.get_submodule(name)
    x = torch.randn(5, 32)
    plain = lora(name, (32, 96))
    factors = plain.layers[name]
    expected = layer(x) + 0.5 * (x @ factors.a) @ factors.b
    fold_into(model, plain)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "name", "width"), [("bert", QUERY, 32), ("gpt2", "transformer.h.0.attn.c_attn", 96)])
def test_vectors_scale_weight_and_bias(kind, name, width):
    model = tiny_model(kind)
    layer = model.get_submodule(name)
    torch.nn.init.normal_(layer.bias)
    x, vector = torch.randn(5, 32), torch.rand(width) + 0.5
    expected = layer(x) * vector
    fold_into(model, PlainAdapter({name: IA3Vector(vector)}, ANY))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lora", "film", "bias", "ia3"])
def test_an_adapter_in_16_bits_is_folded_as_it_computes_beside_the_base(kind, stored):
    """A base in float32 has room for what is small beside 1."""
    ours, folded = tiny_model("bert"), tiny_model("bert")
    attach(ours, AdapterConfig(method="shared", adapter=kind, targets="all-linear"), ["boolq"])
    generator = torch.Generator().manual_seed(3)
    for p in ours.mhr.adapter_parameters():
        p.data.add_(3e-3 + 3e-4 * torch.randn(p.shape, generator=generator))
    plain = collapse(checkpoint_of(ours, "tiny"), None).cast(stored)
    expected = tiny_model("bert")
    attach_plain(expected, plain)
    fold_into(folded, plain)
    with torch.no_grad():
        said = [model(**random_batch(model)).logits for model in (folded, expected)]
    torch.testing.assert_close(*said, rtol=1e-6, atol=1e-6)


def test_a_model_with_a_bank_is_refused():
    model = tiny_model("bert")
    attach(model, AdapterConfig(method="shared"), ["boolq"])
    with pytest.raises(MergeError, match="has a bank: call mhr.detach"):
        fold_into(model, lora(QUERY))


def test_a_tied_layer_is_refused():
    model = tiny_model("gpt2")
    with pytest.raises(MergeError, match="'lm_head' shares its weight with 'transformer.wte.weight'"):
        fold_into(model, lora("lm_head", (32, 64)))


def test_a_quantised_layer_is_refused():
    model = tiny_model("bert")
    layer = model.get_submodule(QUERY)
    layer.weight = torch.nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(MergeError, match="is quantised .torch.int8."):
        fold_into(model, lora(QUERY))


@pytest.mark.parametrize(
    "plain",
    [
        lora("bert.encoder.layer.7.attention.self.query"),
        lora(QUERY, (32, 16)),
        lora(QUERY, classifier={"weight": torch.zeros(3, 32), "bias": torch.zeros(1)}),
        lora(QUERY, classifier={"weight": torch.zeros(1, 32)}),
        lora(QUERY, score={}),
    ],
    ids=["no layer", "sizes", "module shape", "module tensor", "no module"],
)
def test_what_does_not_fit_leaves_the_model_as_it_was(plain):
    model = tiny_model("bert")
    with pytest.raises(CheckpointError):
        fold_into(model, plain)
    for one, other in zip(model.parameters(), tiny_model("bert").parameters(), strict=True):
        assert torch.equal(one, other)
