"""Adapters as the first skills of a bank, and a run that begins with them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from mhr import AdapterConfig, attach
from mhr.adapters import checkpoint_of, load_checkpoint, load_peft, save_adapter, save_peft
from mhr.backbones import load_backbone
from mhr.errors import CheckpointError, ConfigError, MergeError
from mhr.merging import merge_uniform
from mhr.runs.config import load_config
from mhr.training.pretraining import pretrain
from mhr.training.seeding import seed_bank
from tests.cli.running import SMALL, refuse, succeed
from tests.models import random_batch, randomise, tiny_model

TARGETS = {"t5": ["q", "v"], "gpt2": ["c_attn"], "bert": ["query", "value"]}
TASKS = ["boolq", "rte", "wic"]


def output(model: nn.Module, **routing) -> torch.Tensor:
    batch = random_batch(model.get_base_model() if isinstance(model, peft.PeftModel) else model)
    batch.pop("labels", None)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    with torch.no_grad():
        return model(**batch, **routing).logits


def theirs(name: str, folder: Path, **config) -> torch.Tensor:
    """A random PEFT LoRA in a folder, and what the model computes with it."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS[name], "fan_in_fan_out": name == "gpt2", **config}
    model = peft.get_peft_model(tiny_model(name), peft.LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(3)
    for key, p in model.named_parameters():
        if "lora_" in key:
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
    model.save_pretrained(folder)
    return output(model)


def bank(name: str, **settings) -> nn.Module:
    model = tiny_model(name)
    attach(
        model,
        AdapterConfig(**{"method": "private", "targets": TARGETS[name], "rank": 6, "alpha": 2.0, **settings}),
        TASKS,
    )
    return model


@pytest.mark.parametrize("n_heads", [1, 4])
@pytest.mark.parametrize("name", TARGETS)
def test_a_skill_computes_what_its_adapter_did(name, n_heads, tmp_path):
    """Skills of a private bank are those of its tasks, so that each can be asked alone."""
    first = theirs(name, tmp_path / "1")
    second = theirs(name, tmp_path / "2", use_rslora=True, r=2, rank_pattern={TARGETS[name][-1]: 5})
    model = bank(name, n_heads=n_heads)
    fresh = {key: t.clone() for key, t in model.mhr.tensors().items()}
    seed_bank(model, [str(tmp_path / "1"), str(tmp_path / "2")])
    for task, expected in (("boolq", first), ("rte", second), ("wic", output(tiny_model(name)))):
        found = output(model, task_ids=[task] * 4)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    for key, tensor in model.mhr.tensors().items():
        if key.startswith("layers."):
            assert torch.equal(tensor[:, 2], fresh[key][:, 2])
            # What the rank lacks is drawn, so that it can learn.
            if key.endswith("bank_a"):
                assert torch.equal(tensor[:, 0, :, 4:], fresh[key][:, 0, :, 4:])
                assert tensor[:, 0, :, 4:].abs().min() > 0


@pytest.mark.parametrize("adapter", ["ia3", "bottleneck"])
def test_other_kinds_of_adapters(adapter, tmp_path):
    settings = {"adapter": adapter, "targets": ["q", "wo"], "rank": 4, "alpha": 1.0}
    model = tiny_model("t5")
    randomise(attach(model, AdapterConfig(method="shared", **settings), ["one"]))
    save_adapter(model, tmp_path, base="tiny")
    seeded = bank("t5", n_heads=4, **settings)
    seed_bank(seeded, [str(tmp_path)])
    expected = output(model)
    assert (output(seeded, task_ids=["boolq"] * 4) - expected).norm() <= 1e-5 * expected.norm()
    assert (output(seeded, task_ids=["rte"] * 4) - expected).norm() > 1e-3 * expected.norm()


def lora_folder(folder: Path, targets: list[str], rank: int = 2, base: str = "builtin:t5-tiny") -> Path:
    """A random LoRA on the built-in model, as a PEFT folder."""
    model, _ = load_backbone("builtin:t5-tiny")
    randomise(attach(model, AdapterConfig(method="shared", rank=rank, targets=targets), ["one"]), size=0.05)
    plain = merge_uniform(checkpoint_of(model, base))
    return save_peft(plain, folder)


RUN = (*SMALL, "--targets", "q,v", "--set", "train.save_every=2")


def test_a_run_begins_with_them_and_resumes_without_them(tmp_path):
    folders = [lora_folder(tmp_path / name, ["q", "v"]) for name in ("a", "b")]
    flags = [flag for folder in folders for flag in ("--init-skills", folder)]
    still = ("--lr", "1e-12", "--router-lr", "1e-12")
    succeed("pretrain", *RUN, *still, *flags, "--steps", "2", "--output", tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["config"]["init_skills"] == [str(folder) for folder in folders]
    model, _ = load_checkpoint(tmp_path / "run" / "adapter")
    (name, layer), *_ = model.mhr.layers.items()
    for skill, folder in enumerate(folders):
        given = load_peft(folder).layers[name]
        found = layer.bank_a[:, skill].flatten(0, 1)
        scaling = layer.config.scaling
        torch.testing.assert_close(found, given.a * (given.scaling / scaling) ** 0.5, rtol=1e-5, atol=1e-6)

    # Stopped after the first checkpoint; by then the folders are needed no more.
    config = load_config(tmp_path / "run" / "config.yaml")
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4, lr=1e-3))
    whole = pretrain(longer, str(tmp_path / "whole"), progress=False)
    (tmp_path / "whole" / "checkpoints" / "checkpoint-4" / "complete.json").unlink()
    info = json.loads((tmp_path / "whole" / "run.json").read_text()) | {"status": "interrupted"}
    (tmp_path / "whole" / "run.json").write_text(json.dumps(info))
    expected = (whole.adapter / "mhr_adapter.safetensors").read_bytes()
    folders[0].rename(tmp_path / "gone")
    again = pretrain(longer, str(tmp_path / "whole"), resume=True, progress=False)
    assert again.info["resumed_from"] == "checkpoint-2"
    assert (again.adapter / "mhr_adapter.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    ("made", "flags", "line"),
    [
        ({"targets": ["q"]}, (), "the bank adapts layer '.*SelfAttention.v', .*lora does not"),
        ({"targets": ["q", "v", "o"]}, (), "adapts layer '.*.o', the bank does not"),
        ({"rank": 3}, (), "has rank 3, the bank 2: use --rank 3"),
        ({}, ("--method", "lora"), "names 2 adapters, but the bank has room for 1"),
        ({}, ("--method", "ia3"), "is a LoRA, but the bank is made of adapter 'ia3'"),
        ({}, ("--method", "full"), "init_skills is given, but method 'full' has no skills"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(made, flags, line, tmp_path):
    folder = lora_folder(tmp_path / "lora", **{"targets": ["q", "v"], **made})
    given = [flag for _ in range(2) for flag in ("--init-skills", folder)]
    settings = RUN if "--method" not in flags else ("--preset", "demo", "--batch-size", "4")
    targets = () if "full" in flags else ("--targets", "q,v")
    found = refuse("pretrain", *settings, *targets, *flags, *given, "--output", tmp_path / "run")
    assert re.search(line, found), found
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be_used(tmp_path):
    model = bank("t5")
    before = {key: t.clone() for key, t in model.mhr.tensors().items()}
    with pytest.raises(CheckpointError, match="no adapter at .*: there is no such folder"):
        seed_bank(model, [str(tmp_path / "nowhere")])
    theirs("t5", tmp_path / "good")
    other = tiny_model("t5", d_model=64)
    attach(other, AdapterConfig(method="shared", targets=TARGETS["t5"], rank=2), ["one"])
    save_adapter(other, tmp_path / "other", base="wide")
    with pytest.raises(CheckpointError, match="belongs to another base model .wide."):
        seed_bank(model, [str(tmp_path / "good"), str(tmp_path / "other")])
    many = tiny_model("t5")
    attach(many, AdapterConfig(targets=TARGETS["t5"], n_heads=4, rank=2), TASKS)
    save_adapter(many, tmp_path / "many", base="tiny")
    with pytest.raises(MergeError, match="routes 3 tasks and is no one adapter: merge it first"):
        seed_bank(model, [str(tmp_path / "many")])
    for key, tensor in model.mhr.tensors().items():
        assert torch.equal(tensor, before[key])
    with pytest.raises(ConfigError, match="the model has no bank"):
        seed_bank(tiny_model("t5"), [str(tmp_path / "good")])


def test_a_shared_projection_has_no_place_for_skills_of_their_own(tmp_path):
    theirs("t5", tmp_path / "lora")
    model = tiny_model("t5")
    attach(model, AdapterConfig(method="adamix", targets=TARGETS["t5"], rank=4), TASKS)
    with pytest.raises(MergeError, match="cannot start skills that share a projection .share 'up'.: use --share-none"):
        seed_bank(model, [str(tmp_path / "lora")])
