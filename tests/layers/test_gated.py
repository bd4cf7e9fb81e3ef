"""Gated adapters (UniPELT) against their equations in float64, and what calls, caches and masks they keep to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse, collapse_task, fold_into, load_adapter, save_adapter, save_peft
from mhr.adapters.plain import attach_plain, plain_checkpoint
from mhr.errors import CheckpointError, ConfigError, MergeError, TargetError
from mhr.methods import METHODS
from mhr.runs import load_config
from mhr.training.seeding import _put
from tests.models import PAD, WIDTH, random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
SIZES = {"rank": 3, "width": 5, "virtual_tokens": 4}
MODELS = ("bert-encoder", "roberta-masked", "t5", "bart", "llama")
HEADS = 4


def adapted(name: str, model: Any = None, **settings: Any) -> tuple[Any, AdapterBank]:
    model = (tiny_model(name) if model is None else model).double()
    bank = mhr.attach(model, AdapterConfig(**{"method": "private", "adapter": "gated", **SIZES, **settings}), TASKS)
    randomise(bank)
    return model, bank


def causal_bert() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 64}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertModel(BertConfig(vocab_size=64, is_decoder=True, pad_token_id=PAD, **sizes, **dropout)).eval()


# ---- the equations ----------------------------------------------------------------------------------------------------


class Restated:
    """UniPELT on a BERT, token by token, of the tensors of one model with a bank in which each task has a skill."""

    def __init__(self, tensors: dict[str, Tensor], mask: Tensor, tasks: list[int], causal: bool):
        self.tensors, self.mask, self.tasks, self.causal = tensors, mask, tasks, causal

    def own(self, row: int, layer: str, name: str) -> Tensor:
        """A task's own parameter, without the axes of heads and skills."""
        return self.tensors[f"{layer}.{name}"][0, self.tasks[row]]

    def linear(self, layer: str, x: Tensor) -> Tensor:
        return x @ self.tensors[f"{layer}.weight"].T + self.tensors[f"{layer}.bias"]

    def norm(self, layer: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.tensors[f"{layer}.weight"], self.tensors[f"{layer}.bias"], 1e-12)

    def gate(self, row: int, layer: str, x: Tensor) -> Tensor:
        """Of the tokens x [L, I] of an example: [1, 1], or [L, 1] where attention is causal."""
        each = 1 / (1 + torch.exp(-(x @ self.own(row, layer, "gate_a") + self.own(row, layer, "gate_bias"))))
        return each if self.causal else each[self.mask[row] == 1].mean(0, keepdim=True)

    def lora(self, row: int, layer: str, x: Tensor) -> Tensor:
        update = x @ self.own(row, layer, "bank_a") @ self.own(row, layer, "bank_b")
        return self.linear(layer, x) + self.gate(row, layer, x) * update

    def attention(self, row: int, at: str, x: Tensor) -> Tensor:
        q, v, k = self.lora(row, f"{at}.query", x), self.lora(row, f"{at}.value", x), self.linear(f"{at}.key", x)
        gate = self.gate(row, f"{at}.key", x)
        keys, values = (self.own(row, f"{at}.key", name) for name in ("bank_keys", "bank_values"))
        size = WIDTH // HEADS
        out = torch.zeros_like(x)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for token in range(len(x)):
                own = gate[token if self.causal else 0]
                seen = self.mask[row] == 1
                if self.causal:
                    seen = seen & (torch.arange(len(x)) <= token)
                all_keys = torch.cat([own * keys[:, part], k[seen][:, part]])
                all_values = torch.cat([own * values[:, part], v[seen][:, part]])
                share = torch.softmax(all_keys @ q[token, part] / math.sqrt(size), 0)
                chosen = torch.zeros_like(out)
                chosen[token, part] = 1
                out = out + chosen * F.pad(share @ all_values, (head * size, WIDTH - (head + 1) * size))
        return out

    def bottleneck(self, row: int, layer: str, h: Tensor) -> Tensor:
        a, b, bias_a, bias_b = (self.own(row, layer, name) for name in ("bank_a", "bank_b", "bias_a", "bias_b"))
        return h + self.gate(row, layer, h) * (F.gelu(h @ a + bias_a) @ b + bias_b)

    def __call__(self, embedded: Tensor) -> Tensor:
        rows = []
        for row, x in enumerate(embedded):
            for block in ("encoder.layer.0", "encoder.layer.1"):
                y = self.linear(f"{block}.attention.output.dense", self.attention(row, f"{block}.attention.self", x))
                x = self.norm(f"{block}.attention.output.LayerNorm", x + y)
                h = self.linear(f"{block}.output.dense", F.gelu(self.linear(f"{block}.intermediate.dense", x)))
                x = self.norm(f"{block}.output.LayerNorm", x + self.bottleneck(row, f"{block}.output.dense", h))
            rows.append(x)
        return torch.stack(rows)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_outputs_and_every_gradient_are_those_of_the_equations(causal: bool, attn: str) -> None:
    base = causal_bert() if causal else tiny_model("bert-encoder")
    base.set_attn_implementation(attn)
    model, bank = adapted("", base)
    batch = random_batch(tiny_model("bert-encoder"), batch=3, length=5)
    ids = ["copa", "boolq", "rte"]
    real = batch["attention_mask"][..., None].double()
    found = model(**batch, task_ids=ids)[0]
    upstream = torch.randn(found.shape, dtype=torch.float64) * real  # what stands at padding is nothing
    (found * upstream).sum().backward()

    tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    tensors |= {name: tensors[name].requires_grad_() for name in trained}
    embedded = model.embeddings(batch["input_ids"]).detach()
    expected = Restated(tensors, batch["attention_mask"], [TASKS.index(task) for task in ids], causal)(embedded)
    torch.testing.assert_close(found * real, expected * real, rtol=1e-9, atol=1e-11)
    (expected * upstream).sum().backward()
    assert len(trained) == 2 * (2 * 4 + 4 + 6) == len(bank.adapter_parameters())
    for name, gradient in trained.items():
        other = tensors[name].grad
        assert gradient is not None and other is not None and other.any(), name
        torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_attention_with_relative_positions_gives_the_prefix_none(side: str, attn: str) -> None:
    base = tiny_model("t5")
    base.set_attn_implementation(attn)
    model, _ = adapted("t5", base)
    attention = model.get_submodule(f"{side}.block.0.layer.0.SelfAttention")
    seen: list[Any] = []
    attention.register_forward_hook(lambda _, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True)
    batch = random_batch(model)
    with torch.no_grad():
        model(**batch, task_ids=["rte"] * 4)
        (args, kwargs, out), task = seen[0], TASKS.index("rte")
        x = args[0] if args else kwargs["hidden_states"]
        length, size = x.shape[1], 8
        gate = torch.sigmoid(x @ attention.k.gate_a[0, task] + attention.k.gate_bias[0, task])
        mask = batch["attention_mask"][:, None, None, :].bool().expand(-1, 1, length, -1) if side == "encoder" else None
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None].expand(4, -1, -1, -1)
        else:
            real = batch["attention_mask"][..., None]
            gate = ((gate * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)).expand(-1, length, -1)
        with model.mhr.routing(["rte"] * 4):
            if side == "encoder":
                model.mhr.state.batch = model.mhr.state.current().masked(batch["attention_mask"])
            q, k, v = (layer(x).view(4, length, HEADS, size) for layer in (attention.q, attention.k, attention.v))
            model.mhr.state.prefixes.clear()
        keys, values = (t[0, task].view(-1, HEADS, size) for t in (attention.k.bank_keys, attention.k.bank_values))
        scores = torch.einsum("blhd,bkhd->bhlk", q, k) + attention.compute_bias(length, length)
        scores = scores.masked_fill(~mask, -torch.inf)
        front = torch.einsum("blhd,phd->bhlp", q, keys) * gate[:, None]
        shares = torch.softmax(torch.cat([front, scores], -1), -1)
        own = torch.einsum("bhlk,bkhd->blhd", shares[..., 4:], v)
        own = own + gate[..., None] * torch.einsum("bhlp,phd->blhd", shares[..., :4], values)
        expected = attention.o(own.reshape(4, length, -1))
    torch.testing.assert_close(out[0], expected, rtol=1e-9, atol=1e-11)
