"""Adapter folders as runs: banks of a user's own loop, and PEFT LoRAs with every setting that says where and how much."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch

import mhr
from mhr import AdapterConfig
from mhr.adapters import load_checkpoint, read_adapter, save_adapter
from mhr.adapters.importing import formats, import_run
from mhr.errors import CheckpointError, ConfigError, MhrError
from mhr.runs.run import RunFolder
from tests.adapters.importing.conftest import said, shaken
from tests.models import random_batch, randomise, tiny_model


def logits(model: torch.nn.Module, **ids) -> torch.Tensor:
    with torch.no_grad():
        return model(
            **random_batch(model.get_base_model() if isinstance(model, peft.PeftModel) else model), **ids
        ).logits


@pytest.mark.parametrize("method", ["mhr", "poly", "private", "uniform", "shared", "random", "hash"])
def test_a_bank_of_one_s_own_loop(method, bases, tmp_path):
    model = tiny_model("t5")
    randomise(mhr.attach(model, AdapterConfig(method=method, targets=["q", "wo"]), ["a", "b"]))
    save_adapter(model, tmp_path / "bank", base=bases["t5"], info={"step": 7})
    run = import_run(tmp_path / "bank", output=tmp_path / "run")
    again, _ = load_checkpoint(run.adapter)
    assert torch.equal(logits(again, task_ids=["a", "b", "b", "a"]), logits(model, task_ids=["a", "b", "b", "a"]))
    before, after = read_adapter(tmp_path / "bank"), read_adapter(run.adapter)
    assert before.config == after.config
    assert {**before.info, "imported": str(tmp_path / "bank")} == after.info
    assert run.config().adapter.method == method
    assert (run.info["tasks"], run.info["steps"], run.info["base"]) == (["a", "b"], 7, bases["t5"])


CHANGES = {
    "some layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "layers of a pattern": {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 3},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 5},
    },
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "rslora with patterns": {"target_modules": ["q_proj", "k_proj"], "use_rslora": True, "rank_pattern": {"k_proj": 2}},
    "all-linear": {"target_modules": "all-linear", "task_type": "CAUSAL_LM"},
    "an expression": {"target_modules": r".*layers\.1.*(q|up)_proj"},
    "without some": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\..*v_proj"},
    "norms": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "its output layer": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("settings", CHANGES.values(), ids=CHANGES)
def test_a_lora_of_peft_is_exact(settings, bases, tmp_path):
    theirs = shaken(peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=4, lora_alpha=7, **settings)))
    theirs.save_pretrained(tmp_path / "lora")
    run = import_run(tmp_path / "lora", base=bases["llama"], output=tmp_path / "run")
    model, _ = load_checkpoint(run.adapter)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=2e-5)
    assert (logits(theirs) - logits(tiny_model("llama"))).abs().max() > 0.01
    assert run.info["tasks"] == ["task-0"]


REFUSED = {
    "DoRA": ({"target_modules": ["q_proj"], "use_dora": True}, "sets use_dora"),
    "biases": ({"target_modules": ["q_proj"], "bias": "all"}, "sets bias to 'all'|which is no part of a plain LORA"),
    "biases of B": ({"target_modules": ["q_proj"], "lora_bias": True}, "sets lora_bias"),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, "sets trainable_token_indices"),
    "embeddings": ({"target_modules": ["embed_tokens", "q_proj"]}, "adapts the embeddings"),
    "repeated layers": (
        {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]},
        "sets layer_replication",
    ),
}


@pytest.mark.parametrize(("settings", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_lora_that_is_more_is_refused_by_name(settings, expected, bases, tmp_path):
    theirs = shaken(peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=4, **settings)))
    theirs.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    with pytest.raises(CheckpointError, match=expected):
        import_run(tmp_path / "lora", base=bases["llama"], output=tmp_path / "run")
    assert said(tmp_path) == ["lora"]


def test_one_half_of_tied_embeddings_is_refused(tmp_path):
    """PEFT trains a copy of it, so that the two are no longer one."""
    base = tiny_model("llama", tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    from tests.tokenizers import make_word_tokenizer

    make_word_tokenizer().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    shaken(peft.get_peft_model(base, config)).save_pretrained(tmp_path / "lora")
    with pytest.raises(CheckpointError, match=r"brings 'lm_head' and not 'model\.embed_tokens'"):
        import_run(tmp_path / "lora", base=str(tmp_path / "base"), output=tmp_path / "run")
    assert said(tmp_path) == ["base", "lora"]


def test_an_ia3_of_peft(bases, tmp_path):
    config = peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[])
    theirs = shaken(peft.get_peft_model(tiny_model("llama"), config))
    theirs.save_pretrained(tmp_path / "ia3")
    run = import_run(tmp_path / "ia3", base=bases["llama"], output=tmp_path / "run")
    torch.testing.assert_close(logits(load_checkpoint(run.adapter)[0]), logits(theirs), rtol=1e-4, atol=2e-5)
    config = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    shaken(peft.get_peft_model(tiny_model("llama"), config)).save_pretrained(tmp_path / "inputs")
    with pytest.raises(CheckpointError, match="feedforward_modules"):
        import_run(tmp_path / "inputs", base=bases["llama"], output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_another_kind_of_peft_is_refused_by_name(bases, tmp_path):
    peft.get_peft_model(tiny_model("llama"), peft.LoHaConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "x")
    with pytest.raises(CheckpointError, match="PEFT adapter of kind LOHA"):
        import_run(tmp_path / "x", base=bases["llama"], output=tmp_path / "run")


def test_what_an_import_refuses_before_it_reads(bases, tmp_path):
    model = tiny_model("t5")
    mhr.attach(model, AdapterConfig(targets=["q"]), ["a"])
    save_adapter(model, tmp_path / "bank", base=bases["t5"])
    run = import_run(tmp_path / "bank", output=tmp_path / "run")
    with pytest.raises(ConfigError, match="is a run already"):
        import_run(run.path, output=tmp_path / "again")
    with pytest.raises(MhrError, match="is not empty"):
        import_run(tmp_path / "bank", output=tmp_path / "run")
    assert import_run(tmp_path / "bank", output=tmp_path / "run", overwrite=True).status == "done"
    with pytest.raises(MhrError, match="holds the input"):
        import_run(tmp_path / "bank", output=tmp_path, overwrite=True)
    with pytest.raises(CheckpointError, match="none of what is imported: an adapter folder"):
        import_run(tmp_path, output=tmp_path / "again")
    with pytest.raises(MhrError, match=r"cannot read .*nowhere\.txt"):
        import_run(tmp_path / "bank", output=tmp_path / "again", task_names=str(tmp_path / "nowhere.txt"))
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(MhrError, match="no text in UTF-8"):
        import_run(tmp_path / "bank", output=tmp_path / "again", task_names=str(tmp_path / "names.txt"))
    assert said(tmp_path) == ["bank", "names.txt", "run"]


def test_an_adapter_that_names_no_base(tmp_path):
    peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "x")
    path = tmp_path / "x" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="does not say which base model it belongs to"):
        import_run(tmp_path / "x", output=tmp_path / "run")


def test_every_format_has_a_title() -> None:
    assert {"mhr-adapter", "peft-poly", "peft", "mttl", "expert-soup"} <= set(formats)
    assert all(one.title for one in formats.values())


def test_an_import_is_a_run_folder(bases, tmp_path):
    model = tiny_model("t5")
    mhr.attach(model, AdapterConfig(targets=["q"]), ["a"])
    save_adapter(model, tmp_path / "bank", base=bases["t5"])
    import_run(tmp_path / "bank", output=tmp_path / "run", tasks="builtin:skills")
    run = RunFolder.open(Path(tmp_path / "run"))
    assert run.result() == run.adapter
    assert said(run.path) == ["adapter", "config.yaml", "run.json"]
    assert run.config().tasks == "builtin:skills"
    assert run.info["parameters"]["trained"] > 0
