"""Folders that others trained with PEFT: taken exactly, or refused by name with the way on."""

from __future__ import annotations

import dataclasses
import json

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification

from mhr import AdapterConfig, attach
from mhr.adapters import attach_plain, checkpoint_of, collapse, fold_into, load_peft, save_peft
from mhr.adapters.peft import UNDERSTOOD
from mhr.errors import CheckpointError
from mhr.training.seeding import seed_bank
from tests.models import random_batch, tiny_model


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


def output(model: torch.nn.Module) -> torch.Tensor:
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    batch = random_batch(inner)
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("name", ["t5", "llama", "gpt2"])
@pytest.mark.parametrize("as_pattern", [False, True])
def test_ia3_that_scales_inputs_is_exact_when_folded(name, as_pattern, tmp_path):
    inner = {"t5": "wo", "llama": "down_proj", "gpt2": "c_proj"}[name]
    outer = {"t5": "k", "llama": "k_proj", "gpt2": "c_attn"}[name]
    both: list[str] | str = rf".*({inner}|\.{outer})" if as_pattern else [inner, outer]
    config = peft.IA3Config(
        target_modules=both, feedforward_modules=rf".*{inner}" if as_pattern else [inner], fan_in_fan_out=name == "gpt2"
    )
    theirs = shaken(peft.get_peft_model(tiny_model(name), config))
    theirs.save_pretrained(tmp_path / "peft")
    plain = load_peft(tmp_path / "peft")
    assert {shape.inputs for shape in plain.shapes.values()} == {False, True}
    ours = tiny_model(name)
    fold_into(ours, plain)
    torch.testing.assert_close(output(ours), output(theirs), rtol=1e-4, atol=1e-5)
    save_peft(plain, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(tiny_model(name), tmp_path / "again").eval()
    torch.testing.assert_close(output(again), output(theirs), rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError, match="feedforward_modules.*--to model"):
        attach_plain(tiny_model(name), plain)


def test_ia3_that_scales_inputs_is_no_skill(tmp_path):
    config = peft.IA3Config(target_modules=["wo"], feedforward_modules=["wo"])
    peft.get_peft_model(tiny_model("t5"), config).save_pretrained(tmp_path)
    model = tiny_model("t5")
    attach(model, AdapterConfig(adapter="ia3", n_skills=2, targets=["wo"]), ["a", "b"])
    with pytest.raises(Exception, match="scales inputs of layers"):
        seed_bank(model, [str(tmp_path)])


CHANGES = {
    "layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "all-linear": {"target_modules": "all-linear", "task_type": "CAUSAL_LM"},
    "patterns": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 5}},
    "norms": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("settings", CHANGES.values(), ids=CHANGES)
def test_settings_that_say_where_and_how_much_are_exact(settings, tmp_path):
    theirs = shaken(peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=4, lora_alpha=7, **settings)))
    theirs.save_pretrained(tmp_path)
    for put in (attach_plain, fold_into):
        ours = tiny_model("llama")
        put(ours, load_peft(tmp_path))
        torch.testing.assert_close(output(ours.eval()), output(theirs), rtol=1e-4, atol=1e-5)


def test_every_setting_of_peft_is_understood_or_refused(tmp_path):
    """A setting that PEFT will add is refused by its name, until somebody has looked at what it does."""
    peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    beyond = {f.name for f in dataclasses.fields(peft.LoraConfig)} - UNDERSTOOD | {"some_new_setting"}
    assert {"use_dora", "lora_bias", "trainable_token_indices", "layer_replication", "target_parameters"} <= beyond
    for name in beyond:
        path.write_text(json.dumps(config | {name: True}))
        with pytest.raises(CheckpointError, match=f"sets {name}, which no plain LoRA can hold"):
            load_peft(tmp_path)


def test_adapted_embeddings_are_refused(tmp_path):
    config = peft.LoraConfig(target_modules=["embed_tokens", "q_proj"])
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(CheckpointError, match="adapts the embeddings 'model.embed_tokens'"):
        load_peft(tmp_path)


def distilbert(tmp_path) -> str:
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=64, dim=16, n_layers=1, n_heads=2, hidden_dim=24, num_labels=1)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_heads_that_peft_takes_by_their_endings(tmp_path):
    base = distilbert(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    ids = torch.tensor([[5, 6, 7, 8]])
    theirs = shaken(
        peft.get_peft_model(load(base), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin", "v_lin"]))
    )
    theirs.save_pretrained(tmp_path / "peft")
    plain = load_peft(tmp_path / "peft")
    assert set(plain.modules) == {"pre_classifier", "classifier"}
    ours = load(base).eval()
    attach_plain(ours, plain)
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=1e-5, atol=1e-6)
    # Ours of a base that has its head already: PEFT looks for pre_classifier too.
    model = load(base)
    attach(model, AdapterConfig(method="shared", targets=["q_lin"]), ["a"])
    shaken(model)
    save_peft(collapse(checkpoint_of(model, base), None), tmp_path / "ours")
    found = peft.PeftModel.from_pretrained(load(base), tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(found(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-6)
