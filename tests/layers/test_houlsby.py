"""Two bottlenecks a block (Houlsby, arXiv 1902.00751): against a block of BERT in plain torch, by structure, and by the count."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel

import mhr
from mhr import AdapterConfig
from mhr.adapters import load_adapter, save_adapter
from mhr.errors import ConfigError, TargetError
from mhr.layers.targets import find_targets
from mhr.methods import METHODS, method_of
from mhr.runs import load_config
from mhr.runs.config import dump_config
from tests.architectures import build
from tests.models import random_batch, randomise, tiny_model

ROW = METHODS["houlsby"]


def adapted(name: str, **settings: Any) -> tuple[Any, mhr.AdapterBank]:
    model = tiny_model(name).double()
    bank = mhr.attach(model, AdapterConfig(**{**ROW.fixed, "rank": 5, **settings}), ["boolq", "rte"])
    randomise(bank)
    return model, bank


def block(x: Tensor, p: dict[str, Tensor], a: list[dict[str, Tensor]], heads: int, eps: float) -> Tensor:
    """A block of BERT with the adapters `a`, before each of its sums: h = LN(x + A(attention(x))), LN(h + A(feed-forward(h)))."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)

    def adapter(h: Tensor, a: dict[str, Tensor]) -> Tensor:
        down, up = a["bank_a"][0, 0], a["bank_b"][0, 0]
        return h + F.gelu(h @ down + a["bias_a"][0, 0]) @ up + a["bias_b"][0, 0]

    q, k, v = (
        linear(f"attention.self.{n}", x).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("query", "key", "value")
    )
    read = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
    attended = adapter(linear("attention.output.dense", read.transpose(1, 2).flatten(2)), a[0])
    x = norm("attention.output.LayerNorm", x + attended)
    return norm("output.LayerNorm", x + adapter(linear("output.dense", F.gelu(linear("intermediate.dense", x))), a[1]))


def test_outputs_and_every_gradient_are_those_of_the_papers_block() -> None:
    plain = tiny_model("bert-encoder").double()
    weights = {name: t.detach().clone() for name, t in plain.encoder.layer[1].named_parameters()}
    model, bank = adapted("bert-encoder")
    names = ["encoder.layer.1.attention.output.dense", "encoder.layer.1.output.dense"]
    adapters = [bank.layers[name].bank() for name in names]
    x = torch.randn(3, 7, 32, dtype=torch.float64, requires_grad=True)
    stated = block(x, weights, adapters, plain.config.num_attention_heads, plain.config.layer_norm_eps)
    with bank.routing(None):
        found = model.encoder.layer[1](x)
    found = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(found, stated, rtol=1e-10, atol=1e-12)
    leaves = {"x": x} | {f"{name} {key}": p for name, a in zip(names, adapters, strict=True) for key, p in a.items()}
    upstream = torch.randn_like(stated)
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, stated))
    assert len(leaves) == 9
    for name, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ("name", "endings"),
    [
        ("t5", ["o", "wo"]),
        ("bart", ["out_proj", "fc2"]),
        ("llama", ["o_proj", "down_proj"]),
        ("gpt2", ["attn.c_proj", "mlp.c_proj"]),
        ("bert", ["attention.output.dense", "0.output.dense", "1.output.dense"]),
    ],
)
def test_they_stand_where_attention_and_feed_forward_parts_end(name: str, endings: list[str]) -> None:
    model = tiny_model(name)
    found = find_targets(model, "outputs")
    assert found == find_targets(model, endings)
    attention = {"t5": 6, "bart": 6}.get(name, 2)  # a decoder that reads an encoder has two in a block
    assert len(found) == attention + (4 if attention == 6 else 2)


@pytest.mark.parametrize(
    ("kind", "name", "endings"),
    [
        ("causal", "gpt_neox", ["dense", "dense_4h_to_h"]),
        ("causal", "falcon", ["dense", "dense_4h_to_h"]),
        ("causal", "qwen3", ["o_proj", "down_proj"]),
        ("causal", "phi", ["dense", "fc2"]),
        ("causal", "gptj", ["out_proj", "fc_out"]),
        ("causal", "deepseek_v2", ["o_proj", "down_proj"]),
        ("causal", "afmoe", ["o_proj", "down_proj"]),  # whose attention has a gate, as large as its output
        (
            "causal",
            "qwen3_5_text",
            ["o_proj", "out_proj", "down_proj"],
        ),  # whose linear attention begins with its output
        ("classifier", "distilbert", ["out_lin", "lin2"]),
        ("classifier", "deberta-v2", ["attention.output.dense", "0.output.dense", "1.output.dense"]),
        ("seq2seq", "mbart", ["out_proj", "fc2"]),
    ],
)
def test_other_architectures_end_in_the_same(kind: str, name: str, endings: list[str]) -> None:
    model = build(kind, name)
    outside = [head for head in ("classifier", "score") if hasattr(model, head)]
    found = find_targets(model, "outputs", outside)
    assert found == find_targets(model, endings, outside)


def test_a_model_that_shows_no_such_layers_is_refused() -> None:
    with pytest.raises(
        TargetError, match="does not show the Linear layers that return from attention and feed-forward"
    ):
        find_targets(torch.nn.Sequential(torch.nn.Linear(8, 8)), "outputs")


def test_bert_large_trains_as_many_parameters_as_two_bottlenecks_a_block() -> None:
    """24 blocks of two adapters of 2 m d + d + m, m = 64, d = 1024, without the layer norms: 2.1% of the weights of the blocks."""
    with torch.device("meta"):
        config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        model = BertModel(config)
        blocks = sum(p.numel() for p in model.encoder.parameters())
        bank = mhr.attach(model, AdapterConfig(**ROW.fixed, rank=64, modules_to_save=[]), ["boolq"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in bank.adapter_parameters()) == 48 * (2 * 64 * 1024 + 1024 + 64)
    assert f"{trained / blocks:.1%}" == "2.1%"


def test_it_is_stored_and_loaded(tmp_path: Path) -> None:
    model, _ = adapted("t5")
    save_adapter(model, tmp_path, base="tiny")
    again = tiny_model("t5").double()
    load_adapter(tmp_path, again)
    batch = random_batch(again)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def test_settings_have_its_layers_and_no_others(tmp_path: Path) -> None:
    config = load_config(method="houlsby", rank=7)
    assert (config.adapter.adapter, config.adapter.targets, config.adapter.n_skills) == ("bottleneck", "outputs", 1)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert load_config(file, method="bottleneck").adapter.targets is None
    assert load_config(preset="superni", method="houlsby").adapter.targets == "outputs"
    with pytest.raises(
        ConfigError,
        match=r"adapter.targets is \['wo'\], but method 'houlsby' trains 'outputs': leave it out, or choose bottleneck$",
    ):
        load_config(method="houlsby", targets=["wo"])
    assert method_of(ROW.routing or "", "bottleneck") == "bottleneck"
    other = copy.deepcopy(config.adapter)
    assert AdapterConfig.from_dict(other.to_dict()) == other
