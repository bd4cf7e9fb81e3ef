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
        assert gradient is not None, name
        assert other is not None, name
        assert other.any(), name
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


# ---- calls ------------------------------------------------------------------------------------------------------------


def first(output: Any) -> Tensor:
    found: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return found


@pytest.mark.parametrize("settings", [{}, {"method": "mhr", "n_heads": 4, "n_skills": 3}], ids=["private", "mhr"])
@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_mixed_batch_are_answered_as_alone(name: str, settings: dict[str, Any]) -> None:
    model, bank = adapted(name, **settings)
    batch = random_batch(model)
    with torch.no_grad():
        mixed = first(model(**batch, task_ids=IDS))
        for i, task in enumerate(IDS):
            alone = first(model(**{key: t[i : i + 1] for key, t in batch.items()}, task_ids=[task]))
            torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-9, atol=1e-11)
        with mhr.disabled(model):
            base = first(tiny_model(name).double()(**batch))
            torch.testing.assert_close(first(model(**batch)), base)
            assert not torch.allclose(mixed, base)
    first(model(**batch, task_ids=IDS)).square().sum().backward()
    for key, p in model.named_parameters():
        assert not p.requires_grad or (p.grad is not None and p.grad.any()), key
    assert len(bank.layers) == 4 * (4 if model.config.is_encoder_decoder else 2)


@pytest.mark.parametrize("name", ["bert-encoder", "t5", "bart"])
def test_padding_changes_no_gate(name: str) -> None:
    model, _ = adapted(name)
    batch = random_batch(model, batch=2, length=6)
    batch["attention_mask"][:] = 1
    longer = {key: F.pad(t, (0, 3)) for key, t in batch.items() if key != "labels"}
    more = {key: t for key, t in batch.items() if key == "labels"}
    with torch.no_grad():
        found = first(model(**longer, **more, task_ids=IDS[:2]))
        expected = first(model(**batch, task_ids=IDS[:2]))
        torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=1e-9, atol=1e-11)
        without = {key: t for key, t in batch.items() if key != "attention_mask"}
        torch.testing.assert_close(first(model(**without, task_ids=IDS[:2])), expected)


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_tokens_to_come_change_nothing(name: str) -> None:
    model, _ = adapted(name)
    batch = random_batch(model, batch=2)
    key = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    ids = batch.pop("labels").clamp(min=2)
    if key == "input_ids":
        batch = {}
    with torch.no_grad():
        whole = first(model(**batch, **{key: ids}, task_ids=IDS[:2]))
        begun = first(model(**batch, **{key: ids[:, :3]}, task_ids=IDS[:2]))
    torch.testing.assert_close(whole[:, :3], begun, rtol=1e-6, atol=1e-8)  # rotations are of float32


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_changes_no_answer(name: str, beams: int) -> None:
    model, _ = adapted(name)
    batch = {key: t for key, t in random_batch(model).items() if key != "labels"}
    asked = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams, "do_sample": False, "pad_token_id": PAD}
    with torch.no_grad():
        found, slow = (model.generate(**batch, **asked, use_cache=c, task_ids=IDS) for c in (True, False))
        assert torch.equal(found, slow)
        one = {key: t[2:3] for key, t in batch.items()}
        assert torch.equal(model.generate(**one, **asked, task_ids=[IDS[2]])[0], found[2])


def test_with_gates_at_one_and_no_other_part_it_is_a_prefix() -> None:
    model, bank = adapted("llama")
    other = tiny_model("llama").double()
    prefix = mhr.attach(other, AdapterConfig(method="private", adapter="prefix", virtual_tokens=4), TASKS)
    (tokens,) = prefix.adapter_parameters()  # keys and values of each layer, head by head
    parts = []
    with torch.no_grad():
        for name, layer in bank.layers.items():
            own = layer.bank()
            if name.endswith("k_proj"):
                parts += [own["bank_keys"], own["bank_values"]]
                own["gate_a"].zero_()
                own["gate_bias"].fill_(50.0)
            else:
                own["bank_b"].zero_()
                own.get("bias_b", own["bank_b"]).zero_()
        tokens.copy_(torch.cat(parts, -1))
        ids = torch.randint(2, 64, (4, 6))
        positions = torch.arange(6)[None]
        found = model(input_ids=ids, position_ids=positions + 4, task_ids=IDS).logits
        expected = other(input_ids=ids, position_ids=positions, task_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_static_cache_is_as_good() -> None:
    model, _ = adapted("llama")
    ids = torch.randint(2, 64, (4, 6))
    asked = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": PAD, "task_ids": IDS}
    with torch.no_grad():
        expected = model.generate(ids, **asked)
        found = model.generate(ids, cache_implementation="static", disable_compile=True, **asked)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["bert-encoder", "llama", "t5"])
def test_halves_are_computed_in(name: str, autocast: bool) -> None:
    model = tiny_model(name).to(torch.float32 if autocast else torch.bfloat16)
    randomise(mhr.attach(model, AdapterConfig(method="private", adapter="gated", **SIZES), TASKS))
    wide, _ = adapted(name)
    batch = random_batch(tiny_model(name))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = first(model(**batch, task_ids=IDS))
    expected = first(wide(**batch, task_ids=IDS))
    assert (found.double() - expected).abs().max() < 0.1 * expected.abs().max()
    for y in (found.float(), expected):
        (y * torch.linspace(-1, 1, y.shape[-1])).sum().backward()
    for (key, p), other in zip(model.named_parameters(), wide.parameters(), strict=True):
        if p.requires_grad:
            assert p.dtype == torch.float32, key
            assert p.grad is not None, key
            assert other.grad is not None, key
            assert (p.grad - other.grad).norm() < 0.2 * other.grad.norm(), key


# ---- what becomes of it -----------------------------------------------------------------------------------------------


def test_it_is_stored_collapsed_and_put_into_a_skill(tmp_path: Path) -> None:
    model, bank = adapted("bert-encoder", method="mhr", n_heads=4, n_skills=2)
    save_adapter(model, tmp_path, base="tiny")
    again = tiny_model("bert-encoder").double()
    load_adapter(tmp_path, again)
    batch = random_batch(model)
    with torch.no_grad():
        routed = first(model(**batch, task_ids=["rte"] * 4))
        torch.testing.assert_close(first(again(**batch, task_ids=["rte"] * 4)), routed, rtol=0, atol=0)
        plain = collapse_task(checkpoint_of(model, "tiny"), "rte")
        assert {shape.part: shape.rank for shape in plain.shapes.values()} == {"lora": 3, "bottleneck": 5, "prefix": 4}
        config = plain_checkpoint(plain).config
        assert {name: getattr(config, name) for name in SIZES} == SIZES
        worn = tiny_model("bert-encoder").double()
        attach_plain(worn, plain)
        torch.testing.assert_close(first(worn(**batch)), routed)
        for name, layer in bank.layers.items():
            for skill in range(2):
                _put(layer, skill, plain.layers[name])
        torch.testing.assert_close(first(model(**batch, task_ids=IDS)), routed)


def test_detach_takes_it_off() -> None:
    model, _ = adapted("t5")
    attention = model.encoder.block[0].layer[0].SelfAttention
    assert attention.config is not model.encoder.config
    mhr.detach(model)
    assert attention.config is model.encoder.config
    batch = random_batch(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, tiny_model("t5").double()(**batch).logits)


def test_bert_base_trains_as_many_parameters_as_the_paper_s_parts_have() -> None:
    """A bottleneck of 48, a prefix of 10, LoRAs of rank 8 on q and v, and four gates in each of 12 blocks of 768 features."""
    with torch.device("meta"):
        model = BertModel(BertConfig())
    bank = mhr.attach(model, AdapterConfig(**METHODS["unipelt"].fixed, rank=8, width=48, virtual_tokens=10), ["rte"])
    found = dict.fromkeys(("lora", "bottleneck", "prefix", "gates"), 0)
    for name, layer in bank.layers.items():
        part = {"query": "lora", "value": "lora", "key": "prefix", "dense": "bottleneck"}[name.rpartition(".")[2]]
        for key, p in layer.bank().items():
            found["gates" if key.startswith("gate") else part] += p.numel()
    assert found["lora"] == 12 * 2 * 2 * 768 * 8
    assert found["bottleneck"] == 12 * (2 * 768 * 48 + 48 + 768)
    assert found["prefix"] == 12 * 2 * 10 * 768
    assert found["gates"] == 12 * 4 * (768 + 1)
    assert sum(found.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_410_672


# ---- refusals ---------------------------------------------------------------------------------------------------------


def test_a_model_that_it_has_no_place_in_says_so() -> None:
    torch.manual_seed(0)
    gpt2 = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64))
    sizes = {"rank": 2, "virtual_tokens": 2}
    for model, settings, said in (
        (gpt2, {}, "block 'h.0' has not one self-attention with layers q, k and v"),
        (
            tiny_model("t5"),
            {"targets": ["wo"]},
            r"targets is \['wo'\], but the parts of a gated adapter have their places",
        ),
        (tiny_model("t5"), {"method": "mhr", "n_heads": 5}, "n_heads is 5, which does not divide the 32"),
    ):
        before = dict(model.state_dict())
        with pytest.raises(TargetError, match=said) as caught:
            mhr.attach(model, AdapterConfig(**{"method": "shared", "adapter": "gated", **sizes, **settings}), TASKS)
        assert "\n" not in str(caught.value)
        assert model.state_dict().keys() == before.keys()


class Foreign(torch.nn.Module):
    """A self-attention that computes by no function of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        found: Tensor = self.o(torch.softmax(q @ k.transpose(-1, -2), -1) @ v)
        return found


class ForeignModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        parts = {"attention": Foreign(), "up": torch.nn.Linear(8, 16), "down": torch.nn.Linear(16, 8)}
        self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict(parts)])


def test_attention_of_its_own_kind_is_refused() -> None:
    with pytest.raises(
        TargetError, match="attention 'blocks.0.attention' is a Foreign, which does not compute by a function that"
    ):
        mhr.attach(ForeignModel(), AdapterConfig(method="shared", adapter="gated", virtual_tokens=2), TASKS)


def test_calls_that_gates_do_not_fit_say_so() -> None:
    model, bank = adapted("bert-encoder")
    batch = random_batch(model)
    packed = bank.for_batch(IDS).packed(torch.tensor([0, 7, 14, 21, 28]), (4, 7))
    with pytest.raises(
        TargetError, match="got packed rows, in which gates have no example to look at: leave packing out"
    ):
        model(**batch, task_ids=packed)
    with bank.routing(IDS), pytest.raises(TargetError, match=r"the call of its encoder no tokens: gates are means"):
        model.encoder(torch.randn(4, 7, 32, dtype=torch.float64))
    model.set_attn_implementation("eager")
    model(**batch, task_ids=IDS)
    said = "attention 'encoder.layer.0.attention.self' computes by flash_attention_2, which has no place for a prefix"
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(TargetError, match=said):
        model(**batch, task_ids=IDS)
    other = tiny_model("bert-encoder")
    other.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(TargetError, match=said):
        adapted("", other)


def test_keys_that_go_to_no_attention_are_an_error() -> None:
    model, bank = adapted("bert-encoder")
    attention = model.encoder.layer[1].attention.self
    attention.config = model.config  # as a program that replaces it would
    with pytest.raises(TargetError, match="keys of layer 'encoder.layer.1.attention.self.key' went to no attention"):
        model(**random_batch(model), task_ids=IDS)
    assert not bank.state.prefixes


def test_it_is_no_lora_and_folds_into_no_weight(tmp_path: Path) -> None:
    model, _ = adapted("bert-encoder")
    plain = collapse(checkpoint_of(model, "tiny"), None)
    with pytest.raises(
        MergeError, match=r"has gates, which depend on what its layers read, which no weight .*--to mhr"
    ):
        fold_into(tiny_model("bert-encoder").double(), plain)
    with pytest.raises(
        CheckpointError, match=r"PEFT has no gated adapters: write it as an adapter of ours \(--to mhr\)"
    ):
        save_peft(plain, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_settings() -> None:
    config = load_config(method="unipelt", virtual_tokens=9, rank=2)
    assert config.adapter is not None
    assert [config.adapter.size_of(part) for part in ("lora", "bottleneck", "prefix")] == [2, 2, 9]
    assert config.adapter.prepended == 0
    assert load_config(method="unipelt", gradient_checkpointing=True).train.gradient_checkpointing
    for name, said in (("torch_compile", "train"), ("packing", "data"), ("fsdp", "train")):
        with pytest.raises(ConfigError, match=f"{said}.{name} is true, but method 'unipelt' with adapter 'gated' puts"):
            load_config(method="unipelt", **{name: True})
    for method, said in (
        ("adamix", "draws projections"),
        ("hydra", "routes one of two projections"),
        ("hyperformer", "generates adapters"),
    ):
        with pytest.raises(ConfigError, match=f"adapter is 'gated', but method '{method}' {said}"):
            AdapterConfig(method=method, adapter="gated")
    with pytest.raises(ConfigError, match="n_skills is 4, but shared has 1 skill"):
        AdapterConfig(method="shared", adapter="gated", n_skills=4)
    with pytest.raises(ConfigError, match="dropout is 0.1, which is for lora, but adapter is 'gated'"):
        AdapterConfig(method="shared", adapter="gated", dropout=0.1)
