"""Bases of others: multimodal, quantised, damaged, with code or pickles in them. Loaded for what they are, or refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertForMaskedLM, BertModel, LlamaModel, T5ForSequenceClassification

from mhr.backbones import load_backbone
from mhr.backbones.kinds import kind_of_config
from mhr.errors import MhrError
from mhr.evaluation import load_model, score
from mhr.loading import Loading
from tests.evaluation.architectures import tiny_generator
from tests.models import tiny_model
from tests.tokenizers import make_word_tokenizer


def write(model: Any, folder: Path, **config: Any) -> Path:
    """A folder with a model and a tokenizer, and these entries in its config.json (None takes one out)."""
    model.save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(MhrError) as raised:
        load_backbone(folder, **settings)
    line = str(raised.value)
    assert "\n" not in line
    assert str(folder) in line
    return line


@pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration", "LlavaForConditionalGeneration"])
def test_a_multimodal_model_is_its_decoder(tmp_path: Path, name: str) -> None:
    loaded = load_model(write(tiny_generator(name), tmp_path))
    assert (loaded.kind, type(loaded.model).__name__) == ("causal", name)
    assert loaded.lengths(512, 28) == (100, 28)  # the positions of its text


def test_the_named_architecture_decides() -> None:
    cases = [
        (tiny_model("llama").config, ["LlamaForCausalLM"], "causal"),
        (tiny_model("llama").config, ["LlamaForSequenceClassification"], "encoder"),
        (tiny_model("llama").config, ["LlamaModel"], "causal"),
        (tiny_model("llama").config, None, "causal"),
        (tiny_model("gpt2").config, ["GPT2DoubleHeadsModel"], "causal"),
        (tiny_model("bert").config, ["BertForMaskedLM"], "encoder"),
        (tiny_model("bert").config, ["BertModel"], "encoder"),
        (tiny_model("bert").config, None, "encoder"),
        (tiny_model("bert").config, ["BertLMHeadModel"], "causal"),
        (tiny_model("t5").config, None, "seq2seq"),
        (tiny_model("t5").config, ["T5ForSequenceClassification"], "encoder"),
    ]
    for config, named, kind in cases:
        config.architectures = named
        assert kind_of_config(config) == kind, named


def test_what_was_drawn_at_random_is_known(tmp_path: Path) -> None:
    tied = LlamaModel(tiny_model("llama", tie_word_embeddings=True).config)
    assert load_backbone(write(tied, tmp_path / "tied"))[0].mhr_untrained == []
    loose = LlamaModel(tiny_model("llama").config)
    assert load_backbone(write(loose, tmp_path / "loose"))[0].mhr_untrained == ["lm_head"]


def test_dtypes(tmp_path: Path) -> None:
    write(tiny_model("llama").to(torch.bfloat16), tmp_path)
    assert load_backbone(tmp_path)[0].dtype == torch.float32
    assert load_backbone(tmp_path, loading=Loading(dtype="auto"))[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("method", "quantised"),
    [
        ("bitsandbytes", {"load_in_4bit": True}),
        ("gptq", {"bits": 4, "group_size": 128}),
        ("awq", {"bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}),
        ("compressed-tensors", {"format": "pack-quantized"}),
        ("hqq", {}),
        ("unheard-of", {}),
    ],
)
def test_a_quantised_base_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, quantised: dict[str, Any]
) -> None:
    write(tiny_model("llama"), tmp_path, quantization_config={"quant_method": method, **quantised})

    def missing(*args: Any, **kwargs: Any) -> None:
        raise ImportError(f"{method} needs a package that is not here\n(`pip install it`)")

    monkeypatch.setattr("transformers.quantizers.auto.AutoHfQuantizer.from_config", missing)
    line = refused(tmp_path)
    assert f"it is quantised ({method})" in line
    assert "in 16 bits as the base (--model)" in line


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{" * 9)


def spoil_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "of-tomorrow"}')


def spoil_depth(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def spoil_values(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')


def spoil_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}{}{}{}")


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')


def spoil_encoding(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    "spoil",
    [spoil_config, spoil_type, spoil_depth, spoil_values, spoil_list, spoil_weights, spoil_tokenizer, spoil_encoding],
    ids=lambda f: f.__name__,
)
def test_a_damaged_folder_is_one_line(tmp_path: Path, spoil: Any) -> None:
    spoil(write(tiny_model("llama"), tmp_path))
    assert "cannot load model" in refused(tmp_path)


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({mark!r}).write_text("run")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def test_code_of_a_base_runs_only_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    mark = tmp_path / "mark"
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    folder = write(tiny_model("llama"), tmp_path / "base", model_type="own", auto_map=auto, trust_remote_code=True)
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    line = refused(folder)
    assert "brings code of its own" in line
    assert "--trust-remote-code" in line
    assert not mark.exists()
    model, _ = load_backbone(folder, loading=Loading(trust_remote_code=True))
    assert type(model).__name__ == "OwnForCausalLM"
    assert mark.exists()


def test_code_of_a_tokenizer_or_a_kernel_runs_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    mark = tmp_path / "mark"
    folder = write(tiny_model("llama"), tmp_path / "base")
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text()) | {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
    }
    file.write_text(json.dumps(values))
    assert "--trust-remote-code" in refused(folder)
    assert not mark.exists()
    kernel = write(tiny_model("llama"), tmp_path / "kernel", attn_implementation="somebody/kernel")
    assert "--trust-remote-code" in refused(kernel)


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "cut"])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, form: str) -> None:
    mark = tmp_path / "mark"
    folder = tmp_path / "base"
    write(tiny_model("llama"), folder)
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    if form == "bare":
        file.write_bytes(pickle.dumps(Evil(mark)))
    elif form == "cut":
        file.write_bytes(b"\x80\x02c")
    else:
        torch.save({"weight": Evil(mark)}, file, _use_new_zipfile_serialization=form == "zip")
    assert "use a checkpoint in safetensors" in refused(folder) or form == "cut"
    assert not mark.exists()


def test_bare_encoders_and_their_heads(tmp_path: Path) -> None:
    config = BertConfig(**{**tiny_model("bert").config.to_dict(), "architectures": None})
    assert load_backbone(write(BertModel(config), tmp_path / "bare"))[0].mhr_untrained == ["classifier"]
    masked = load_backbone(write(BertForMaskedLM(config), tmp_path / "masked"))[0]
    assert masked.mhr_untrained == ["bert.pooler.dense", "classifier"]
    t5 = T5ForSequenceClassification(AutoConfig.for_model(**{**tiny_model("t5").config.to_dict(), "num_labels": 1}))
    model, _ = load_backbone(write(t5, tmp_path / "t5"))
    assert type(model).__name__ == "T5ForSequenceClassification"
    assert model.mhr_untrained == []


@pytest.mark.parametrize("labels", [2, 3])
def test_a_head_for_several_labels_is_drawn_anew(tmp_path: Path, labels: int) -> None:
    """As of a model for natural-language inference; choices are ranked by one output."""
    folder = write(tiny_model("bert", num_labels=labels), tmp_path)
    model, _ = load_backbone(folder)
    assert model.mhr_untrained == ["classifier"]
    assert list(model.classifier.weight.shape) == [1, 32]
    with pytest.raises(MhrError, match="does not hold 'classifier'"):
        score(folder, tasks="builtin:skills")


@pytest.mark.parametrize(("name", "setting"), [("t5", "d_ff"), ("llama", "intermediate_size"), ("bert", "vocab_size")])
def test_weights_of_other_shapes_than_the_configuration_asks_for(tmp_path: Path, name: str, setting: str) -> None:
    line = refused(write(tiny_model(name), tmp_path, **{setting: 48}))
    assert re.search(
        r"holds \S+weight as \[.*64.*\], but its configuration asks for \[.*48.*\]: the two do not belong", line
    )
