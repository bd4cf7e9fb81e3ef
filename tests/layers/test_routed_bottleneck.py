"""The bottleneck layer against its formula, written out in float64: every value and every gradient, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM
from transformers.pytorch_utils import Conv1D

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.layers import RoutedBottleneck
from tests.models import DECODERS, random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
LENGTH, IN, OUT, RANK = 5, 12, 8, 3
LIMITS = {torch.float64: 1e-12, torch.float32: 3e-6}
BASES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(IN, OUT),
    "without bias": lambda: nn.Linear(IN, OUT, bias=False),
    "conv1d": lambda: Conv1D(OUT, IN),
}
NAMES = ("bank_a", "bias_a", "bank_b", "bias_b")


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def one_layer(base: nn.Module, **config: Any) -> tuple[OneLayer, AdapterBank, RoutedBottleneck]:
    torch.manual_seed(0)
    model = OneLayer(base).train()
    settings = {"targets": ["layer"], "adapter": "bottleneck", "rank": RANK, "n_skills": 5, **config}
    bank = mhr.attach(model, AdapterConfig(**settings), TASKS)
    randomise(bank)
    layer = bank.layers["layer"]
    assert isinstance(layer, RoutedBottleneck)
    return model, bank, layer


def bottleneck(h: Tensor, a: Tensor, bias_a: Tensor, b: Tensor, bias_b: Tensor) -> Tensor:
    z = h @ a + bias_a
    return h + 0.5 * z * (1 + torch.erf(z / 2**0.5)) @ b + bias_b


def weighed(h: Tensor, truth: dict[str, Tensor], w: Tensor) -> Tensor:
    """One example, its heads and skills one by one; w [H, S]."""
    n_heads, n_skills = w.shape

    def average(name: str, head: int) -> Tensor:
        return sum(w[head, s] * truth[name][head, s] for s in range(n_skills))  # type: ignore[return-value]

    a, bias_a, b, bias_b = ([average(name, head) for head in range(n_heads)] for name in NAMES)
    return bottleneck(h, torch.cat(a, 0), torch.stack(bias_a).mean(0), torch.cat(b, 1), torch.cat(bias_b, 1))


def check(
    model: nn.Module, layer: RoutedBottleneck, batch: Any, dtype: torch.dtype, formula: Callable[..., Any]
) -> None:
    """Holds output and gradients to `formula(h, truth, logits) -> [outputs]`, in float64."""
    x = torch.randn(4, LENGTH, IN, dtype=dtype, requires_grad=True)
    upstream = torch.randn(4, LENGTH, OUT, dtype=dtype)
    y = model(x, task_ids=batch)
    (y * upstream).sum().backward()
    leaves: dict[str, Tensor] = {"x": x, **layer.bank(), **dict(layer.router.named_parameters())}
    truth = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    matrix = layer.base.weight.double()
    h = truth["x"] @ (matrix if isinstance(layer.base, Conv1D) else matrix.T)
    if layer.base.bias is not None:
        h = h + layer.base.bias.double()
    expected = torch.stack([formula(h[i], truth, i) for i in range(4)])
    (expected * upstream.double()).sum().backward()
    found = {"y": y} | {name: leaf.grad for name, leaf in leaves.items()}
    wanted = {"y": expected} | {name: leaf.grad for name, leaf in truth.items()}
    for name, value in wanted.items():
        assert found[name] is not None, name
        error = (found[name].double() - value).abs().max() / value.abs().max()
        assert error <= LIMITS[dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("method", "heads"), [("poly", 1), ("mhr", 4), ("mhr", 2)])
def test_routed_by_tasks(method: str, heads: int, base: str, dtype: torch.dtype) -> None:
    model, bank, layer = one_layer(BASES[base]().to(dtype), method=method, n_heads=heads)
    ids = [2, 0, 2, -1]

    def formula(h: Tensor, truth: dict[str, Tensor], i: int) -> Tensor:
        if ids[i] < 0:
            w = torch.full((heads, 5), 0.2, dtype=torch.float64)
        else:
            p = torch.sigmoid(truth["logits"][ids[i]])
            w = p / (p.sum(-1, keepdim=True) + 1e-12)
        return weighed(h, truth, w)

    check(model, layer, bank.for_batch(ids), dtype, formula)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("share", ["none", "up", "down"])
def test_drawn_at_random(share: str, base: str, dtype: torch.dtype) -> None:
    model, bank, layer = one_layer(BASES[base]().to(dtype), method="adamix", share=share)
    down, up = (1 if share == side else 5 for side in ("down", "up"))
    assert [p.shape[1] for p in layer.bank().values()] == [down, down, up, up]
    bank.seed_draws(7, 3)
    batch = bank.for_batch(["rte", "copa", "rte", "rte"])
    (d,), (u,) = batch.draws[0].tolist()
    if share == "none":
        assert d != u  # or the test would not tell them apart

    def formula(h: Tensor, truth: dict[str, Tensor], i: int) -> Tensor:
        a, bias_a = truth["bank_a"][0, d], truth["bias_a"][0, d]
        b, bias_b = truth["bank_b"][0, u], truth["bias_b"][0, u]
        return bottleneck(h, a, bias_a, b, bias_b)

    check(model, layer, batch, dtype, formula)
    for name, p in layer.bank().items():
        drawn = d if name.endswith("_a") else u
        assert [bool(p.grad[0, s].any()) for s in range(p.shape[1])] == [s == drawn for s in range(p.shape[1])], name


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("share", ["none", "up", "down"])
def test_averaged_outside_training(share: str, dtype: torch.dtype) -> None:
    model, bank, layer = one_layer(nn.Linear(IN, OUT).to(dtype), method="adamix", share=share)
    model.eval()

    def formula(h: Tensor, truth: dict[str, Tensor], i: int) -> Tensor:
        return bottleneck(h, *(truth[name][0].mean(0) for name in NAMES))

    check(model, layer, bank.for_batch(None), dtype, formula)


def test_initial_values() -> None:
    _, _, layer = one_layer(nn.Linear(IN, 256), method="adamix", rank=32, share="none")
    layer.reset()
    for name in ("bank_a", "bank_b"):
        values = layer.bank()[name].detach()
        assert 0.019 < values.std() < 0.021, name
        assert values.mean().abs() < 1e-3, name
        flat = values.flatten(2)[0]
        correlation = torch.corrcoef(flat) - torch.eye(5)
        assert correlation.abs().max() < 0.06, name  # skills are drawn independently of one another
    assert not layer.bias_a.any()
    assert not layer.bias_b.any()


def test_sizes_are_those_of_the_output() -> None:
    _, bank, layer = one_layer(nn.Linear(IN, OUT), method="mhr", n_heads=4)
    assert layer.bank_a.shape == (4, 5, OUT // 4, RANK)
    assert layer.bank_b.shape == (4, 5, RANK, OUT // 4)
    assert layer.bias_a.shape == (4, 5, 1, RANK)
    assert layer.bias_b.shape == (4, 5, 1, OUT // 4)
    with pytest.raises(mhr.MhrError, match="n_heads is 3, which does not divide the 8 output features"):
        one_layer(nn.Linear(IN, OUT), method="mhr", n_heads=3)


FEED_FORWARD = {
    "bert": [f"bert.encoder.layer.{i}.output.dense" for i in range(2)],
    "t5": [
        *(f"encoder.block.{i}.layer.1.DenseReluDense.wo" for i in range(2)),
        *(f"decoder.block.{i}.layer.2.DenseReluDense.wo" for i in range(2)),
    ],
    "bart": [f"model.{coder}.layers.{i}.fc2" for coder in ("encoder", "decoder") for i in range(2)],
    "gpt2": [f"transformer.h.{i}.mlp.c_proj" for i in range(2)],
    "llama": [f"model.layers.{i}.mlp.down_proj" for i in range(2)],
}


@pytest.mark.parametrize("method", ["adamix", "mhr", "shared"])
@pytest.mark.parametrize("name", FEED_FORWARD)
def test_it_goes_behind_the_feed_forward_blocks_of_every_architecture(name: str, method: str) -> None:
    model = tiny_model(name).train()
    inputs = random_batch(model)
    plain = model(**inputs)[0].detach()
    bank = mhr.attach(model, AdapterConfig(method=method, adapter="bottleneck"), TASKS)
    assert sorted(bank.layers) == sorted(FEED_FORWARD[name])
    randomise(bank)
    ids = ["copa", "boolq", "copa", "rte"]
    loss = model(**inputs, task_ids=ids)[0].square().sum()
    assert not torch.equal(loss.detach(), plain.square().sum())
    loss.backward()
    for layer in bank.layers.values():
        for key, p in layer.bank().items():
            assert p.grad is not None, f"{layer.name} {key}"
            assert p.grad.any(), f"{layer.name} {key}"
    if name in DECODERS:
        model.eval()
        written = model.generate(inputs["input_ids"], task_ids=ids, max_new_tokens=3, num_beams=2)
        assert written.shape[0] == 4
    mhr.detach(model)
    assert torch.equal(model(**inputs)[0].detach(), plain)


def test_roberta_takes_it_where_bert_does() -> None:
    config = RobertaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=64
    )
    bank = mhr.attach(RobertaForMaskedLM(config), AdapterConfig(method="adamix", adapter="bottleneck"), TASKS)
    assert list(bank.layers) == [f"roberta.encoder.layer.{i}.output.dense" for i in range(2)]


@pytest.mark.parametrize(
    ("model", "config", "width", "published"),
    [
        (
            RobertaForMaskedLM,
            RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
            16,
            811_392,
        ),
        (BertForMaskedLM, BertConfig(), 48, 894_528),
    ],
    ids=["roberta-large", "bert-base"],
)
def test_parameters_at_inference_are_the_published_ones(model: Any, config: Any, width: int, published: int) -> None:
    with torch.device("meta"):
        one = model(config)
        many, shared = model(config), model(config)
    bank = mhr.attach(one, AdapterConfig(method="shared", adapter="bottleneck", rank=width), ["sst2"])
    assert sum(p.numel() for p in bank.adapter_parameters()) == published
    adamix = {"method": "adamix", "adapter": "bottleneck", "rank": width}
    bank = mhr.attach(many, AdapterConfig(**adamix, share="none"), ["sst2"])
    assert sum(p[:, 0].numel() for p in bank.adapter_parameters()) == published
    assert sum(p.numel() for p in bank.adapter_parameters()) == 4 * published
    up = sum(p.numel() for n, p in one.named_parameters() if p.requires_grad and n.endswith(("bank_b", "bias_b")))
    bank = mhr.attach(shared, AdapterConfig(**adamix), ["sst2"])
    assert sum(p.numel() for p in bank.adapter_parameters()) == 4 * published - 3 * up
