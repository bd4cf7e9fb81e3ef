"""PEFT folders: plain PEFT loads ours and computes the same, and we read PEFT's own."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mhr import AdapterConfig, attach
from mhr.adapters import (
    BaseModel,
    LoraFactors,
    PlainAdapter,
    attach_plain,
    checkpoint_of,
    fold_into,
    load_peft,
    read_bank,
    save_peft,
)
from mhr.errors import CheckpointError
from mhr.merging import merge, merge_task, merge_uniform
from tests.models import MODELS, random_batch, tiny_model

TASKS = ["boolq", "rte", "wic"]
TARGETS = {
    "t5": ["q", "wo"],
    "bart": ["q_proj", "fc2"],
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "value"],
    "bert-encoder": ["query", "value"],
}
ADAPTERS = {
    "mhr": {"n_heads": 4, "n_skills": 3, "rank": 3, "alpha": 2.5},
    "poly-ia3": {"method": "poly", "adapter": "ia3", "n_skills": 3},
    "adamix-lora": {"method": "adamix", "n_skills": 3, "alpha": 8.0, "share": "up"},
}


def shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.2 * torch.randn(p.shape, generator=generator))


def output(model: nn.Module, **routing: list[str]) -> torch.Tensor:
    # By the base model: padding and labels depend on its class, which PEFT hides.
    batch = random_batch(model.get_base_model() if isinstance(model, peft.PeftModel) else model)
    batch.pop("labels", None)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    with torch.no_grad():
        found = model(**batch, **routing)
    return found.logits if "logits" in found else found.last_hidden_state


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (one - other).norm() <= tolerance * other.norm()


def load_with_peft(name: str, folder: Path) -> nn.Module:
    """The adapter on a fresh base model, by PEFT alone; a warning (a missing key, a corrected setting) is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for something that was renamed
        return peft.PeftModel.from_pretrained(tiny_model(name), folder).eval()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_a_merged_task(name, adapter, tmp_path):
    model = tiny_model(name)
    attach(model, AdapterConfig(**ADAPTERS[adapter]), TASKS)
    shake(model)
    expected = output(model, task_ids=["rte"] * 4)
    plain = merge_task(checkpoint_of(model, "tiny"), task="rte")
    folder = save_peft(plain, tmp_path / "peft")

    close(output(load_with_peft(name, folder)), expected)
    again = tiny_model(name)
    attach_plain(again, load_peft(folder))
    close(output(again), expected)
    assert (output(tiny_model(name)) - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("name", ["t5", "bart", "llama", "gpt2"])
def test_peft_generates_the_same(name, tmp_path):
    model = tiny_model(name)
    attach(model, AdapterConfig(method="poly"), TASKS)
    shake(model)
    plain = merge_uniform(checkpoint_of(model, "tiny"))
    folded = tiny_model(name)
    fold_into(folded, plain)
    ids = random_batch(model)["input_ids"][:1]
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = folded.generate(input_ids=ids, **settings)
    other = load_with_peft(name, save_peft(plain, tmp_path / "peft"))
    assert torch.equal(other.generate(input_ids=ids, **settings), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_adapters_are_read(name, rslora, tmp_path):
    base = tiny_model(name)
    targets = TARGETS[name]
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=targets,
        use_rslora=rslora,
        rank_pattern={rf".*1\..*{targets[0]}": 5},
        alpha_pattern={targets[1]: 7.5},
        modules_to_save=["classifier"] if name == "bert" else None,
        task_type="SEQ_CLS" if name == "bert" else None,
        fan_in_fan_out=name == "gpt2",
    )
    theirs = peft.get_peft_model(base, config).eval()
    shake(theirs)
    expected = output(theirs)
    theirs.save_pretrained(tmp_path / "theirs")

    plain = load_peft(tmp_path / "theirs")
    assert isinstance(plain, PlainAdapter)
    assert len({factors.rank for factors in plain.layers.values()}) > 1
    attached, folded = tiny_model(name), tiny_model(name)
    attach_plain(attached, plain)
    fold_into(folded, plain)
    close(output(attached), expected)
    close(output(folded), expected)
    # Written by us again, with one rank and one alpha or with patterns, PEFT computes the same.
    for patterns in (False, True):
        folder = save_peft(plain, tmp_path / f"patterns {patterns}", patterns=patterns)
        sizes = {(factors.rank, factors.scaling) for factors in load_peft(folder).layers.values()}
        assert (len(sizes) > 1) is patterns
        ours = peft.PeftModel.from_pretrained(tiny_model(name), folder)
        close(output(ours.eval()), expected)


def test_rank_alpha_and_values_travel_exactly(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def factors(rank: int, alpha: float) -> LoraFactors:
        return LoraFactors(
            torch.randn(32, rank, generator=generator), torch.randn(rank, 32, generator=generator), alpha
        )

    layers = {"a.q": factors(4, 1.0), "b.q": factors(4, 1.0), "c.q": factors(4, 2.5), "d.q": factors(6, 1.0)}
    save_peft(PlainAdapter(layers, BaseModel("tiny", "causal")), tmp_path, patterns=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 1, False)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"d.q": 6}, {"c.q": 2.5})
    assert config["task_type"] == "CAUSAL_LM"
    again = load_peft(tmp_path)
    assert again.base == BaseModel("tiny", "causal")
    for name, expected in layers.items():
        assert torch.equal(again.layers[name].a, expected.a)
        assert torch.equal(again.layers[name].b, expected.b)
        assert again.layers[name].alpha == expected.alpha


@pytest.mark.parametrize("to", ["mhr", "peft-lora"])
@pytest.mark.parametrize(
    ("shares", "expected"), [((0.05,), 0.05), ((0.05, 0.05), 0.05), ((0.05, 0.1), 0.0), ((0,), 0.0)]
)
def test_dropout_travels_for_training_that_goes_on(shares, expected, to, tmp_path):
    folders = []
    for i, share in enumerate(shares):
        torch.manual_seed(i)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=share, init_lora_weights=False)
        peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / f"peft-{i}")
        folders.append(tmp_path / f"peft-{i}")
    merged = merge(folders, to=to, output=tmp_path / "merged")
    for folder, dropout in ((folders[0], float(shares[0])), (merged, expected)):
        assert read_bank(folder).config.dropout == dropout
    if to == "peft-lora":
        assert peft.PeftConfig.from_pretrained(merged).lora_dropout == expected


def test_peft_vectors_are_read(tmp_path):
    theirs = peft.get_peft_model(
        tiny_model("t5"), peft.IA3Config(target_modules=["k", "v"], feedforward_modules=[])
    ).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    plain = load_peft(tmp_path)
    assert plain.kind == "ia3"
    for change in (attach_plain, fold_into):
        model = tiny_model("t5")
        change(model, plain)
        close(output(model), output(theirs))


# ---- refusals ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    factors = LoraFactors(torch.randn(32, 2), torch.randn(2, 32), 1.0)
    return save_peft(PlainAdapter({"layer.q": factors}, BaseModel("tiny")), tmp_path / "peft")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"peft_type": "LOHA"}, "holds a PEFT adapter of kind LOHA: expected LORA or IA3"),
        ({"peft_type": "PREFIX_TUNING"}, "of kind PREFIX_TUNING"),
        ({"lora_dropout": 1.0}, "sets lora_dropout to 1.0: expected a number of at least 0 and below 1"),
        ({"use_dora": True}, "sets use_dora, which no plain LoRA can hold"),
        ({"bias": "all"}, "sets bias to 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights too"),
        ({"r": 3}, r"shape \(2, 32\) and \(32, 2\), but adapter_config.json gives it rank 3"),
        ({"rank_pattern": {"q": 4}}, "gives it rank 4"),
    ],
)
def test_what_is_no_plain_lora_is_refused(folder, changes, match):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_peft(folder)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_read(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="adapter_model.bin is a pickle, which can run code"):
        load_peft(folder)


def test_damage_is_refused(folder, tmp_path):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        load_peft(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="the adapter is incomplete"):
        load_peft(folder)
    with pytest.raises(CheckpointError, match="adapter_config.json is missing"):
        load_peft(tmp_path / "nowhere")

    name = "base_model.model.layer.q.lora_{}.weight"
    save_file({name.format("A"): tensors[name.format("A")]}, path)
    with pytest.raises(CheckpointError, match="holds only lora_A.weight of layer 'layer.q'"):
        load_peft(folder)
    save_file(tensors | {"base_model.model.layer.q.lora_embedding_A": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="adapts the embeddings 'layer.q'"):
        load_peft(folder)
    save_file({}, path)
    with pytest.raises(CheckpointError, match="holds no LORA tensors"):
        load_peft(folder)
