from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import huggingface_hub
import pytest
import torch

from mhr.backbones import BUILTIN, load_backbone
from mhr.backbones.train_t5_tiny import accuracy, train
from mhr.data.skills import SKILLS, draw_examples
from mhr.errors import ConfigError, MhrError
from tests.models import tiny_model
from tests.tokenizers import make_word_tokenizer


def test_the_builtin_model_knows_the_single_skills():
    model, tokenizer = load_backbone("builtin:t5-tiny")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    examples = [e for name in SKILLS for e in islice(draw_examples((name,), 1), 20)]
    assert accuracy(model, tokenizer, examples) >= 0.9


def test_the_builtin_model_does_not_know_compositions():
    model, tokenizer = load_backbone("builtin:t5-tiny")
    examples = [e for pair in (("rev", "last"), ("first", "box")) for e in islice(draw_examples(pair, 1), 40)]
    assert accuracy(model, tokenizer, examples) <= 0.3


def test_the_builtin_folder_says_how_it_was_made():
    folder = BUILTIN["builtin:t5-tiny"]
    record = json.loads((folder / "training.json").read_text())
    assert record["command"].startswith("python -m mhr.backbones.train_t5_tiny")
    assert set(record["exact_match"]) == set(SKILLS)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 4 * 2**20


def test_training_is_the_same_for_a_seed():
    first, again = (train(steps=3, batch=4, learning_rate=1e-3, seed=7).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("t5", "seq2seq"), ("bart", "seq2seq"), ("llama", "causal"), ("gpt2", "causal"), ("bert-encoder", "encoder")],
)
def test_local_folders_load_as_what_they_are(tmp_path: Path, name: str, kind: str):
    tiny_model(name).save_pretrained(tmp_path)
    make_word_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_backbone(tmp_path)
    endings = {
        "seq2seq": "ForConditionalGeneration",
        "causal": ("ForCausalLM", "LMHeadModel"),
        "encoder": "ForSequenceClassification",
    }
    assert type(model).__name__.endswith(endings[kind])
    assert tokenizer.pad_token is not None
    if kind == "encoder":
        assert model.config.num_labels == 1
    assert model.mhr_untrained == (["classifier"] if kind == "encoder" else [])


def test_a_decoder_may_rank_as_an_encoder(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    make_word_tokenizer().save_pretrained(tmp_path)
    assert type(load_backbone(tmp_path, "encoder")[0]).__name__ == "LlamaForSequenceClassification"


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cases = [
        (("builtin:t5-tny",), ConfigError, "unknown built-in model 'builtin:t5-tny': did you mean 'builtin:t5-tiny'"),
        (("builtin:t5-tiny", "decoder"), ConfigError, "unknown kind of model 'decoder'"),
        (("builtin:t5-tiny", "causal"), ConfigError, "cannot be loaded as 'causal': it can be 'seq2seq' or 'encoder'"),
        ((tmp_path,), MhrError, "cannot load model .*: the folder"),
        ((tmp_path / "missing",), MhrError, "missing': no such folder, and no hub id of the form owner/name"),
        (("nobody-here/no-model",), MhrError, "neither a local folder nor a hub id that can be reached: "),
    ]
    for args, kind, message in cases:
        with pytest.raises(kind, match=message) as error:
            load_backbone(*args)
        assert "\n" not in str(error.value)
