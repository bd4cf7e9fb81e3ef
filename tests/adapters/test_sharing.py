"""Modules that share parameters (tied weights): opened again, written for PEFT, and refused where one tensor cannot hold two values."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, LlamaForCausalLM, T5Config
from transformers import T5ForConditionalGeneration as T5

from mhr import AdapterConfig, attach
from mhr.adapters import (
    BaseModel,
    IA3Vector,
    PlainAdapter,
    attach_checkpoint,
    attach_plain,
    check_reopens,
    checkpoint_of,
    collapse_task,
    fold_into,
    load_adapter,
    load_peft,
    save_adapter,
    save_peft,
)
from mhr.errors import CheckpointError
from mhr.merging import merge

SMALL = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1}
IDS = torch.tensor([[5, 6, 7, 8]])


def llama(tie: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tie,
        **SMALL,
    )
    return LlamaForCausalLM(config).eval()


def t5() -> T5:
    torch.manual_seed(0)
    config = T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0, **SMALL)
    return T5(config).eval()


def logits(model: torch.nn.Module, **more) -> torch.Tensor:
    with torch.no_grad():
        if "T5" in type(getattr(model, "base_model", model)).__name__ or hasattr(model.config, "d_kv"):
            more["decoder_input_ids"] = IDS
        return model(input_ids=IDS, **more).logits


def trained(model: torch.nn.Module, module: str) -> torch.nn.Module:
    bank = attach(model, AdapterConfig(method="poly", n_skills=2, modules_to_save=[module]), ["a", "b"])
    check_reopens(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in [*bank.adapter_parameters(), *bank.saved_parameters()]:
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


CASES = [(llama, "lm_head"), (llama, "model.embed_tokens"), (t5, "shared"), (t5, "lm_head")]


@pytest.mark.parametrize(("make", "module"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_either_half_is_opened_again_and_exact_in_peft(make, module, tmp_path):
    base = make()
    base.save_pretrained(tmp_path / "base")
    model = trained(make(), module)
    want = logits(model, task_ids=["b"])
    save_adapter(model, tmp_path / "bank", base=str(tmp_path / "base"))
    again = make()
    load_adapter(tmp_path / "bank", again)
    assert torch.equal(logits(again, task_ids=["b"]), want)
    plain = collapse_task(checkpoint_of(model, str(tmp_path / "base")), "b")
    save_peft(plain, tmp_path / "lora")
    auto = AutoModelForCausalLM if make is llama else AutoModelForSeq2SeqLM
    theirs = peft.PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(theirs), want, rtol=1e-4, atol=1e-4)
    # Ours of it again: both halves are there and agree.
    once_more = make()
    attach_plain(once_more, load_peft(tmp_path / "lora"))
    torch.testing.assert_close(logits(once_more), want, rtol=1e-4, atol=1e-4)


def test_embeddings_are_not_written_for_peft_where_the_base_cannot_be_asked(tmp_path):
    model = trained(llama(), "lm_head")
    with pytest.raises(
        CheckpointError, match="may share with another .tied weights., and base model 'gone' cannot be read"
    ):
        save_peft(collapse_task(checkpoint_of(model, "gone"), "a"), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("half", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("put", [attach_plain, fold_into])
def test_a_half_that_peft_trained_is_refused_on_tied_weights(half, put, tmp_path):
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], modules_to_save=[half]))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="with which this model shares its weights: PEFT trained a copy"):
        put(llama(), load_peft(tmp_path))
    put(llama(tie=False), load_peft(tmp_path))


@pytest.mark.parametrize("half", ["lm_head", "embed_tokens"])
def test_a_half_that_peft_trained_is_merged_for_peft_exactly_and_for_nothing_else(half, tmp_path):
    base = llama()
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=[half])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    want = logits(model.eval())
    model.save_pretrained(tmp_path / "lora")
    merge(tmp_path / "lora", to="peft-lora", output=tmp_path / "merged")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "merged")
    torch.testing.assert_close(logits(again.eval()), want)
    with pytest.raises(CheckpointError, match="with which this model shares its weights: PEFT trained a copy"):
        merge(tmp_path / "lora", to="mhr", output=tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_half_that_peft_trained_is_not_merged_with_one_of_ours_that_stands_for_both(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    ours = llama()
    attach(ours, AdapterConfig(method="shared", rank=8, targets=["q_proj"], modules_to_save=["lm_head"]), ["a"])
    save_adapter(ours, tmp_path / "ours", base=str(tmp_path / "base"))
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).save_pretrained(
        tmp_path / "lora"
    )
    with pytest.raises(CheckpointError, match="'lm_head' and not 'model.embed_tokens'"):
        merge([tmp_path / "ours", tmp_path / "lora"], to="peft-lora", output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_two_values_for_one_parameter_are_refused():
    states = {"lm_head": {"weight": torch.zeros(64, 16)}, "model.embed_tokens": {"weight": torch.ones(64, 16)}}
    vector = IA3Vector(torch.ones(16))
    plain = PlainAdapter({"model.layers.0.self_attn.q_proj": vector}, BaseModel("tiny"), states)
    for put in (attach_plain, fold_into):
        with pytest.raises(CheckpointError, match="with different values, but this model shares them"):
            put(llama(), plain)


def test_parameters_trained_beside_the_adapter_are_told_before_training():
    model = llama()
    attach(model, AdapterConfig(method="shared"), ["a"])
    check_reopens(model)
    model.model.norm.weight.requires_grad_(True)
    with pytest.raises(CheckpointError, match="'model.norm.weight' is trained but is no part of the adapter"):
        check_reopens(model)


def test_a_bank_that_saves_both_halves_trains_them_once():
    model = llama()
    bank = attach(model, AdapterConfig(modules_to_save=["lm_head", "model.embed_tokens"]), ["a", "b"])
    assert len(bank.saved_parameters()) == 1
    attach_checkpoint(checkpoint_of(model, "tiny"), llama())
