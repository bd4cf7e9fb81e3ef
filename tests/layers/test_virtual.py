"""Prompts and prefixes against PEFT's own models, and what a call with them keeps to: rows, tasks, caches, generation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import (
    attach_checkpoint,
    checkpoint_of,
    collapse,
    collapse_task,
    fold_into,
    load_adapter,
    save_adapter,
    save_peft,
)
from mhr.adapters.plain import attach_plain
from mhr.errors import CheckpointError, ConfigError, MergeError, TargetError
from mhr.methods import METHODS, method_of
from mhr.runs import load_config
from mhr.training.seeding import _put
from tests.models import PAD, random_batch, randomise, tiny_model

peft = pytest.importorskip("peft")

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
CASES = [(kind, name) for kind in ("prompt", "prefix") for name in ("t5", "bart", "gpt2", "llama")]
P = 5


def adapted(kind: str, name: str, **settings: Any) -> tuple[Any, AdapterBank]:
    model = tiny_model(name).double()
    asked = {"method": "private", "adapter": kind, "virtual_tokens": P, **settings}
    bank = mhr.attach(model, AdapterConfig(**asked), TASKS)
    randomise(bank)
    return model, bank


def inputs(name: str, rows: int = 4) -> dict[str, Tensor]:
    """A batch without padding on the left: PEFT counts positions by the cache, not by the mask."""
    batch = random_batch(tiny_model(name))
    return {key: t[:rows] for key, t in batch.items()}


def theirs(kind: str, name: str, folder: Path) -> Any:
    """PEFT's model of the folder that the first task of a bank is written to."""
    base = tiny_model(name)
    base.save_pretrained(folder / "base")
    model, bank = adapted(kind, name)
    checkpoint = checkpoint_of(model, str(folder / "base"))
    save_peft(collapse_task(checkpoint, TASKS[0]), folder / "peft")
    found = peft.PeftModel.from_pretrained(tiny_model(name).double(), folder / "peft").double()
    found.prompt_encoder["default"].embedding.weight.data = load_file(folder / "peft" / "adapter_model.safetensors")[
        "prompt_embeddings"
    ]
    return found


def in_training(loaded: Any, name: str) -> Any:
    """The same before PEFT has stored it, which is what it trains."""
    config = copy.deepcopy(loaded.peft_config["default"])
    config.inference_mode = False
    found = peft.get_peft_model(tiny_model(name).double(), config).double()
    with torch.no_grad():
        for one, other in zip(found.prompt_encoder.parameters(), loaded.prompt_encoder.parameters(), strict=True):
            one.copy_(other)
    return found.eval()


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_outputs_and_gradients_are_those_of_peft(kind: str, name: str, tmp_path: Path) -> None:
    model, bank = adapted(kind, name)
    loaded = theirs(kind, name, tmp_path)
    other = in_training(loaded, name)
    batch = inputs(name)
    if not model.config.is_encoder_decoder:
        batch["labels"][:, 0] = -100  # which PEFT has a prompt predict
    y = other(**batch)
    torch.testing.assert_close(loaded(**batch).logits, y.logits)
    found = model(**batch, task_ids=["boolq"] * 4)
    torch.testing.assert_close(found.loss, y.loss, rtol=1e-9, atol=1e-11)
    of_words = y.logits[:, -found.logits.shape[1] :]
    torch.testing.assert_close(found.logits, of_words, rtol=1e-9, atol=1e-11)
    y.loss.backward()
    found.loss.backward()
    (gradient,) = (p.grad for p in other.parameters() if p.grad is not None)
    (own,) = (p.grad for p in model.parameters() if p.grad is not None)
    assert own is next(iter(bank.adapter_parameters())).grad
    assert gradient.any()
    assert not own[:, 1:].any()  # of the other tasks
    if kind == "prefix" and model.config.is_encoder_decoder:
        gradient = gradient.view(P, -1, 2, own.shape[-1] // 2)[:, :, 0].flatten(
            1
        )  # without the pairs that no layer has
    torch.testing.assert_close(own[0, 0], gradient, rtol=1e-6, atol=1e-9)  # rotations are of float32


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_answers_are_those_of_peft(kind: str, name: str, tmp_path: Path) -> None:
    model, _ = adapted(kind, name)
    other = theirs(kind, name, tmp_path).eval()
    ids = inputs(name)["input_ids"].clamp(min=2)
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "min_new_tokens": 6}
    asked |= {"do_sample": False, "pad_token_id": PAD}
    with torch.no_grad():
        expected = other.generate(**asked)
        for more in ({}, {"use_cache": False}):
            found = model.generate(**asked, **more, task_ids=["boolq"] * 4)
            assert torch.equal(found[:, -6:], expected[:, -6:]), more


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_rows_of_a_mixed_batch_are_answered_as_alone(kind: str, name: str) -> None:
    model, bank = adapted(kind, name, method="mhr", n_heads=4, n_skills=3)
    batch = inputs(name)
    with torch.no_grad():
        mixed = model(**batch, task_ids=IDS).logits
        for i, task in enumerate(IDS):
            alone = model(**{key: t[i : i + 1] for key, t in batch.items()}, task_ids=[task]).logits
            torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-9, atol=1e-11)
        with mhr.disabled(model):
            torch.testing.assert_close(model(**batch).logits, tiny_model(name).double()(**batch).logits)
        beams = model.generate(batch["input_ids"], max_new_tokens=4, num_beams=3, pad_token_id=PAD, task_ids=IDS)
        for i, task in enumerate(IDS):
            one = model.generate(
                batch["input_ids"][i : i + 1], max_new_tokens=4, num_beams=3, pad_token_id=PAD, task_ids=[task]
            )
            assert torch.equal(beams[i, : one.shape[1]], one[0])
    model(**batch, task_ids=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in bank.parameters())


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_padding_on_the_left_changes_nothing(kind: str) -> None:
    model, _ = adapted(kind, "llama")
    ids = torch.randint(2, 64, (2, 6))
    padded = torch.cat([torch.full((2, 3), PAD), ids], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model(input_ids=ids, task_ids=["rte", "copa"]).logits
        found = model(input_ids=padded, attention_mask=mask, position_ids=positions, task_ids=["rte", "copa"]).logits
        torch.testing.assert_close(found[:, 3:], alone)
        said = {"max_new_tokens": 4, "pad_token_id": PAD, "do_sample": False, "task_ids": ["rte", "copa"]}
        expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **said)
        assert torch.equal(model.generate(input_ids=padded, attention_mask=mask, **said)[:, 3:], expected)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_training_does_without_a_cache_to_return(kind: str, name: str) -> None:
    model, _ = adapted(kind, name)
    batch = inputs(name)
    with torch.no_grad():
        expected = model(**batch, task_ids=IDS).loss
        torch.testing.assert_close(model(**batch, task_ids=IDS, use_cache=False).loss, expected)
        model.config.use_cache = False
        torch.testing.assert_close(model(**batch, task_ids=IDS).loss, expected)


@pytest.mark.parametrize(("kind", "name"), [("prompt", "t5"), ("prefix", "gpt2")])
def test_it_is_stored_collapsed_and_put_into_a_skill(kind: str, name: str, tmp_path: Path) -> None:
    model, bank = adapted(kind, name)
    save_adapter(model, tmp_path, base="tiny")
    again = tiny_model(name).double()
    load_adapter(tmp_path, again)
    batch = inputs(name)
    with torch.no_grad():
        routed = model(**batch, task_ids=["rte"] * 4).logits
        torch.testing.assert_close(again(**batch, task_ids=["rte"] * 4).logits, routed, rtol=0, atol=0)
        plain = collapse_task(checkpoint_of(model, "tiny"), "rte")
        assert (plain.kind, next(iter(plain.shapes.values())).rank) == (kind, P)
        worn = tiny_model(name).double()
        attach_plain(worn, plain)
        torch.testing.assert_close(worn(**batch).logits, routed)
        (layer,) = bank.layers.values()
        _put(layer, 0, next(iter(plain.layers.values())))
        assert torch.equal(layer.bank_tokens[:, 0], layer.bank_tokens[:, 1])


def test_a_prompt_begins_as_words_of_the_vocabulary_and_counts_as_much() -> None:
    model = tiny_model("t5").double()
    bank = mhr.attach(model, AdapterConfig(**METHODS["prompt-tuning"].fixed, virtual_tokens=7), ["boolq"])
    (tokens,) = bank.adapter_parameters()
    words = model.get_input_embeddings().weight
    assert tokens.shape == (1, 1, 7, 32)
    assert all((words == token).all(1).any() for token in tokens[0, 0])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 7 * 32
    model = tiny_model("llama")  # 2 layers, 2 heads of keys and values of 8
    mhr.attach(model, AdapterConfig(**METHODS["prefix-tuning"].fixed, virtual_tokens=7), ["boolq"])
    heads, size = model.config.num_key_value_heads, model.config.hidden_size // model.config.num_attention_heads
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 7 * 2 * 2 * heads * size


def test_detach_takes_it_off() -> None:
    for name in ("t5", "llama"):
        model, _ = adapted("prompt", name)
        mhr.detach(model)
        batch = inputs(name)
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, tiny_model(name).double()(**batch).logits)


def test_what_has_no_place_for_it_says_so(tmp_path: Path) -> None:
    model, bank = adapted("prompt", "llama")
    ids = torch.randint(2, 64, (4, 6))
    with pytest.raises(ConfigError, match="gradient checkpointing computes blocks again without a cache"):
        model.gradient_checkpointing_enable()
    with pytest.raises(TargetError, match=r"has no place in packed rows: leave packing out"):
        model(input_ids=ids, task_ids=bank.for_batch(IDS).packed(torch.tensor([0, 6, 12, 18, 24]), (4, 6)))
    with pytest.raises(TargetError, match="has no place in "), torch.no_grad():
        model.generate(ids, max_new_tokens=2, cache_implementation="static", disable_compile=True, task_ids=IDS)
    plain = collapse(checkpoint_of(model, "tiny"), None)
    with pytest.raises(
        MergeError,
        match=r"a prompt has virtual tokens in front of the input, which no weight can take up: keep .*--to mhr",
    ):
        fold_into(tiny_model("llama").double(), plain)
    prefix = collapse(checkpoint_of(adapted("prefix", "llama")[0], "nowhere"), None)
    with pytest.raises(CheckpointError, match="base model 'nowhere' is not here to say how many layers"):
        save_peft(prefix, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
    for kind, name, settings, said in (
        (
            "prompt",
            "bert-encoder",
            {},
            "virtual tokens are for models that generate text, but the model is a BertModel",
        ),
        ("prompt", "t5", {"targets": ["wo"]}, r"targets is \['wo'\], but adapter 'prompt' stands in front"),
        ("prompt", "t5", {"method": "mhr", "n_heads": 5}, "n_heads is 5, which does not divide the 32 output features"),
    ):
        with pytest.raises(TargetError, match=said) as caught:
            adapted(kind, name, **settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="method 'adamix' draws projections, which virtual tokens have none of"):
        AdapterConfig(method="adamix", adapter="prefix")


def test_settings() -> None:
    config = load_config(method="prefix-tuning", virtual_tokens=9)
    assert (config.adapter.adapter, config.adapter.prepended) == ("prefix", 9)
    assert load_config(method="lora").adapter.prepended == 0
    for name, said in (("gradient_checkpointing", "train"), ("packing", "data")):
        with pytest.raises(
            ConfigError, match=f"{said}.{name} is true, but method 'prompt-tuning' with adapter 'prompt' puts"
        ):
            load_config(method="prompt-tuning", **{name: True})
    assert method_of(METHODS["prompt-tuning"].routing or "", "prompt") == "prompt-tuning"


def test_another_checkpoint_is_attached_where_its_embeddings_fit() -> None:
    model, _ = adapted("prompt", "llama")
    checkpoint = checkpoint_of(model, "tiny")
    attach_checkpoint(copy.deepcopy(checkpoint), tiny_model("llama").double())
    with pytest.raises(CheckpointError, match="belongs to another base model"):
        attach_checkpoint(checkpoint, tiny_model("gpt2").double())
