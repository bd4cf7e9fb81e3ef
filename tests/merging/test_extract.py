"""LoRAs out of models that were fine-tuned whole: exact where the difference is of low rank, and refused by name where it is more."""

from __future__ import annotations

import json
import math
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from mhr.adapters import load_peft
from mhr.errors import CheckpointError, ConfigError, MergeError, MhrError
from mhr.files import read_json
from mhr.layers.linear import is_linear
from mhr.merging import extract
from tests.cli.running import succeed
from tests.models import random_batch, tiny_model

KINDS = ("llama", "gpt2", "t5", "bart", "bert-masked")


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers with a weight of their own."""
    outputs = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if is_linear(m) and m is not outputs}


def tuned(name: str, rank: int | None, dtype: torch.dtype = torch.float32, **config) -> tuple[nn.Module, nn.Module]:
    """A base model, and the same with a difference of this rank (None: any) in every Linear layer."""
    base, full = (tiny_model(name, **config).to(dtype) for _ in range(2))
    generator = torch.Generator().manual_seed(5)
    for layer in linears(full).values():
        i, o = layer.weight.shape
        left = torch.eye(i) if rank is None else torch.randn(i, rank, generator=generator)
        delta = left.double() @ torch.randn(left.shape[1], o, generator=generator).double()
        layer.weight.data += (0.05 * delta).to(dtype)
    return base, full


def store(folder: Path, **models: nn.Module) -> list[Path]:
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return [folder / name for name in models]


def logits(model: nn.Module, name: str) -> torch.Tensor:
    batch = random_batch(tiny_model(name))
    batch.pop("labels", None)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("name", KINDS)
def test_a_difference_of_low_rank_comes_back_exactly(name, tmp_path):
    base, full = tuned(name, 3)
    places = store(tmp_path, full=full, base=base)
    output = extract(*places, rank=4, output=tmp_path / "lora")
    found = load_peft(output)
    assert found.layers.keys() == linears(base).keys()
    report = read_json(output / "extract_report.json")
    assert report["error"]["overall"] < 1e-6
    assert set(report["ranks"].values()) == {4}
    for layer, module in linears(base).items():
        delta = linears(full)[layer].weight.detach().double() - module.weight.detach().double()
        delta = delta if isinstance(module, Conv1D) else delta.T
        apart = found.layers[layer].a.double() @ found.layers[layer].b.double() * found.layers[layer].scaling - delta
        assert apart.norm() < 1e-6 * delta.norm()
    expected = logits(full, name)
    adapted = peft.PeftModel.from_pretrained(base, output).eval()
    assert (logits(adapted, name) - expected).norm() < 1e-5 * expected.norm()
    assert (output / "README.md").read_text().count("the difference of full and the base model") == 1
    assert "Citation" not in (output / "README.md").read_text()


def test_the_error_of_a_full_rank_difference_is_that_of_its_singular_values(tmp_path):
    base, full = tuned("llama", None)
    output = extract(*store(tmp_path, full=full, base=base), rank=5, output=tmp_path / "lora")
    report = read_json(output / "extract_report.json")
    for layer, module in linears(base).items():
        s = torch.linalg.svdvals((linears(full)[layer].weight - module.weight).detach().double())
        assert report["error"]["layers"][layer] == pytest.approx(
            math.sqrt(float(s[5:].square().sum() / s.square().sum())), rel=1e-4
        )
    assert max(report["error"]["layers"].values()) > 0.3


@pytest.mark.parametrize("patterns", [False, True])
def test_energy_sets_each_layers_rank(patterns, tmp_path):
    base, full = tuned("llama", None)
    one = "model.layers.1.mlp.up_proj"
    layer = linears(full)[one]
    layer.weight.data = linears(base)[one].weight + torch.outer(torch.ones(64), torch.ones(32))  # of rank 1
    places = store(tmp_path, full=full, base=base)
    output = extract(*places, rank_energy=0.8, patterns=patterns, output=tmp_path / "lora")
    ranks = read_json(output / "extract_report.json")["ranks"]
    for name, module in linears(base).items():
        squares = torch.linalg.svdvals((linears(full)[name].weight - module.weight).detach().double()).square()
        kept = float(squares[: ranks[name]].sum() / squares.sum())
        assert kept >= 0.8 > float(squares[: ranks[name] - 1].sum() / squares.sum()) or ranks[name] == 1
    assert ranks[one] == 1 < max(ranks.values())
    config = json.loads((output / "adapter_config.json").read_text())
    assert bool(config["rank_pattern"]) is patterns
    assert config["r"] == max(ranks.values()) or patterns
    capped = extract(*places, rank=2, rank_energy=0.8, output=tmp_path / "capped")
    assert set(read_json(capped / "extract_report.json")["ranks"].values()) == {1, 2}


def test_what_is_the_same_gets_no_adapter(tmp_path):
    base, full = tiny_model("llama"), tiny_model("llama")
    full.model.layers[0].self_attn.q_proj.weight.data.add_(0.1)
    output = extract(*store(tmp_path, full=full, base=base), rank=1, output=tmp_path / "lora")
    assert list(load_peft(output).layers) == ["model.layers.0.self_attn.q_proj"]


def test_shards_and_names_of_another_class_are_found(tmp_path):
    base, full = tuned("llama", 2)
    full.save_pretrained(tmp_path / "full", max_shard_size="20KB")
    assert len(list((tmp_path / "full").glob("*.safetensors"))) > 2
    base.save_pretrained(tmp_path / "base")
    held = load_file(tmp_path / "base" / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in held.items()}
    save_file(renamed, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    output = extract(tmp_path / "full", tmp_path / "base", rank=2, output=tmp_path / "lora")
    assert read_json(output / "extract_report.json")["error"]["overall"] < 1e-6


def test_norms_and_embeddings_are_named_and_taken_whole_or_left(tmp_path):
    base, full = tuned("llama", 2, tie_word_embeddings=False)
    full.model.norm.weight.data.add_(0.5)
    for layer in full.model.layers:
        layer.input_layernorm.weight.data.mul_(1.5)
    full.model.embed_tokens.weight.data.add_(0.01)
    places = store(tmp_path, full=full, base=base)
    line = (
        "differs from .* in what no LoRA holds: 'model.embed_tokens.weight', 'model.layers.0.input_layernorm.weight', "
        "'model.layers.1.input_layernorm.weight' and 1 more: take their modules whole with --modules-to-save "
        "embed_tokens,input_layernorm,norm, or leave them as in the base with --ignore"
    )
    with pytest.raises(MergeError, match=line):
        extract(*places, rank=2, output=tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    whole = ["embed_tokens", "input_layernorm", "model.norm"]
    output = extract(*places, rank=2, modules_to_save=whole, output=tmp_path / "lora")
    expected = logits(full, "llama")
    adapted = peft.PeftModel.from_pretrained(tiny_model("llama", tie_word_embeddings=False), output).eval()
    assert (logits(adapted, "llama") - expected).norm() < 1e-5 * expected.norm()
    report = read_json(output / "extract_report.json")
    assert "model.layers.1.input_layernorm" in report["modules_to_save"]
    left = extract(*places, rank=2, modules_to_save=whole[:2], ignore=["norm.weight"], output=tmp_path / "left")
    ignored = read_json(left / "extract_report.json")["ignored"]
    own = base.model.norm.weight
    assert ignored == {"model.norm.weight": pytest.approx(0.5 * math.sqrt(len(own)) / float(own.norm()), rel=1e-5)}


def test_what_is_zero_in_the_base_and_left_so_is_told(tmp_path):
    base, full = tuned("gpt2", 2)
    base.transformer.h[0].attn.c_proj.bias.data.zero_()
    full.transformer.h[0].attn.c_proj.bias.data.fill_(1.0)
    left = extract(*store(tmp_path, full=full, base=base), rank=2, ignore=["c_proj.bias"], output=tmp_path / "left")
    assert read_json(left / "extract_report.json")["ignored"] == {"transformer.h.0.attn.c_proj.bias": None}
    shown = succeed(
        "extract",
        tmp_path / "full",
        tmp_path / "base",
        "--rank",
        2,
        "--ignore",
        "c_proj.bias",
        "--output",
        tmp_path / "again",
    )
    assert "transformer.h.0.attn.c_proj.bias, which is not 0, as it is there" in shown.stdout


def test_a_bias_that_differs_takes_its_layer_whole(tmp_path):
    base, full = tuned("gpt2", 2)
    full.transformer.h[0].attn.c_proj.bias.data.add_(1.0)
    places = store(tmp_path, full=full, base=base)
    with pytest.raises(MergeError, match=r"'transformer.h.0.attn.c_proj.bias': take .* --modules-to-save c_proj, or"):
        extract(*places, rank=2, output=tmp_path / "lora")
    output = extract(*places, rank=2, modules_to_save=["h.0.attn.c_proj"], output=tmp_path / "lora")
    expected = logits(full, "gpt2")
    adapted = peft.PeftModel.from_pretrained(tiny_model("gpt2"), output).eval()
    assert (logits(adapted, "gpt2") - expected).norm() < 1e-5 * expected.norm()


def test_a_base_is_rounded_as_the_fine_tuned_model_is(tmp_path):
    """A model that was loaded in bfloat16 differs from its float32 base in every number, by rounding."""
    base = tiny_model("llama")
    full = tiny_model("llama").bfloat16()
    full.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1.0
    output = extract(*store(tmp_path, full=full, base=base), rank=1, output=tmp_path / "lora")
    found = load_peft(output)
    assert list(found.layers) == ["model.layers.1.mlp.up_proj"]
    assert found.layers["model.layers.1.mlp.up_proj"].a.dtype == torch.bfloat16
    other = extract(tmp_path / "full", tmp_path / "base", rank=1, dtype="float32", output=tmp_path / "wide")
    assert load_peft(other).layers["model.layers.1.mlp.up_proj"].a.dtype == torch.float32


def test_float64_stays_float64(tmp_path):
    base, full = tuned("llama", 2, torch.float64)
    output = extract(*store(tmp_path, full=full, base=base), rank=2, output=tmp_path / "lora")
    assert read_json(output / "extract_report.json")["error"]["overall"] < 1e-12


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, ConfigError, "neither rank nor rank_energy is given: say how large"),
        ({"rank": 0}, ConfigError, "rank is 0, expected an integer of at least 1"),
        ({"rank_energy": 1.5}, ConfigError, "rank_energy is 1.5"),
        ({"rank": 2, "dtype": "int8"}, ConfigError, "dtype is 'int8'"),
        ({"rank": 2, "modules_to_save": ["nrm"]}, ConfigError, "modules_to_save names 'nrm', .* did you mean 'norm'"),
        ({"rank": 2, "ignore": ["lm_haed"]}, ConfigError, "ignore names 'lm_haed', .* did you mean 'lm_head'"),
    ],
)
def test_settings_that_do_not_fit(given, error, match, tmp_path):
    base, full = tuned("llama", 1)
    with pytest.raises(error, match=match):
        extract(*store(tmp_path, full=full, base=base), output=tmp_path / "lora", **given)
    assert not (tmp_path / "lora").exists()


def test_models_that_do_not_belong_together(tmp_path):
    base, full = tuned("llama", 1)
    models = {
        "full": full,
        "base": base,
        "gpt2": tiny_model("gpt2"),
        "resized": tiny_model("llama", vocab_size=70),
        "wider": tiny_model("llama", intermediate_size=128),
        "deeper": tiny_model("llama", num_hidden_layers=3),
        "tied": tiny_model("llama", tie_word_embeddings=True),
        "classifier": tiny_model("bert"),
    }
    places = dict(zip(models, store(tmp_path, **models), strict=True))
    for other, line in {
        "base": "hold the same weights: there is no difference",
        "gpt2": "is a gpt2, .*base a llama",
        "resized": r"'model.embed_tokens.weight' has shape \(70, 32\) in .*: its embeddings were resized, which no LoRA holds",
        "wider": r"mlp.gate_proj.weight' has shape \(128, 32\) in .* and \(64, 32\)",
        "deeper": "deeper has a parameter 'model.layers.2.* of its own",
        "tied": "'model.embed_tokens.weight', shared by 2 modules, where .*base has none like it",
    }.items():
        with pytest.raises(MergeError, match=line):
            extract(places[other], places["base"], rank=1, output=tmp_path / "lora")
    with pytest.raises(MergeError, match="is an encoder that classifies"):
        extract(places["classifier"], places["classifier"], rank=1, output=tmp_path / "lora")
    with pytest.raises(MhrError, match="holds the input .*base: choose another"):
        extract(places["full"], places["base"], rank=1, output=places["base"])
    assert not (tmp_path / "lora").exists()


def test_folders_that_cannot_be_read(tmp_path):
    base, full = tuned("llama", 1)
    good, bad = store(tmp_path, full=full, base=base)
    weights = (bad / "model.safetensors").read_bytes()

    def refused(match: str, error: type[MhrError] = CheckpointError) -> None:
        with pytest.raises(error, match=match):
            extract(good, bad, rank=1, output=tmp_path / "lora")

    (bad / "model.safetensors").write_bytes(weights[:100])
    refused("cannot read .*model.safetensors")
    held = load_file(good / "model.safetensors")
    save_file({k: v for k, v in held.items() if "up_proj" not in k}, bad / "model.safetensors")
    refused("holds no tensor 'model.layers.0.mlp.up_proj.weight': load it with transformers and save it again")
    save_file(held | {"model.norm.weight": torch.zeros(7)}, bad / "model.safetensors")
    refused(r"holds model.norm.weight as \[7\], but its configuration asks for \[32\]")
    broken = held | {"model.layers.0.mlp.up_proj.weight": torch.full((64, 32), float("nan"))}
    save_file(broken, bad / "model.safetensors")
    refused("layer 'model.layers.0.mlp.up_proj' of .* holds values that are not finite", MergeError)
    (bad / "model.safetensors").unlink()
    refused("has no model.safetensors and no model.safetensors.index.json")
    (bad / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    refused("cannot read .*gone.safetensors")
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    refused("is quantised, so its weights are no numbers that can be subtracted")
    (bad / "config.json").unlink()
    refused("is no model that transformers can read")
