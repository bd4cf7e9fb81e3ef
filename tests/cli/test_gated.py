"""Gated adapters through the commands: of each task, averages, as a beginning, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mhr
from mhr import AdapterConfig
from mhr.adapters import read_adapter, save_adapter
from mhr.backbones import load_backbone
from mhr.errors import MergeError
from mhr.evaluation import load_model
from mhr.training.seeding import seed_bank
from tests.cli.running import refuse, succeed
from tests.models import randomise

T5 = "builtin:t5-tiny"
NAMES = ["rev-last", "next-first"]
SIZES = {"rank": 2, "width": 3, "virtual_tokens": 4}


def bank(folder: Path) -> Path:
    """A run of a bank in which everything has a value, of an adapter for each task."""
    model, _ = load_backbone(T5)
    randomise(mhr.attach(model, AdapterConfig(method="private", adapter="gated", **SIZES), NAMES))
    save_adapter(model, folder / "bank", base=T5)
    succeed("import", folder / "bank", "--tasks", "builtin:skills", "--output", folder / "run")
    return folder / "run"


def test_a_task_is_an_adapter_with_its_gates_and_begins_a_skill(tmp_path: Path) -> None:
    run = bank(tmp_path)
    merged, each, mean = (tmp_path / name for name in ("task", "each", "mean"))
    succeed("merge", run, "--method", "task", "--task", "rev-last", "--output", merged)
    succeed("merge", run, "--each-task", "--output", each)
    succeed("merge", run, "--method", "uniform", "--output", mean)
    routed, alone = load_model(run, task="rev-last"), load_model(merged)
    batch = routed.tokenizer(["rev last: bcdh", "rev last: hgab"], return_tensors="pt")
    batch["labels"] = torch.tensor([[5, 6, 7], [8, 9, 4]])
    with torch.no_grad(), routed.routing(["rev-last"] * 2):
        expected = routed.model(**batch).logits
    with torch.no_grad(), alone.routing(["rev-last"] * 2):
        torch.testing.assert_close(alone.model(**batch).logits, expected)
    told = json.loads(
        succeed("merge", merged, mean, "--method", "uniform", "--output", tmp_path / "m", "--json").stdout
    )
    assert told["rank"] == [2, 3]  # of a LoRA and a bottleneck
    first = read_adapter(merged).tensors
    for size, fits in ((3, True), (5, False)):
        model, _ = load_backbone(T5)
        begun = mhr.attach(model, AdapterConfig(method="shared", adapter="gated", **SIZES | {"width": size}), NAMES)
        before = {name: t.clone() for name, t in begun.tensors().items()}
        if fits:
            seed_bank(model, [str(merged)])
        else:
            with pytest.raises(
                MergeError, match=r"init_skills: a bottleneck of .* has size 3, the bank 5: set rank, width"
            ):
                seed_bank(model, [str(merged)])
        expected = first if fits else before
        assert begun.tensors().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in begun.tensors().items())


def test_what_it_is_not_is_refused(tmp_path: Path) -> None:
    run, out = bank(tmp_path), tmp_path / "out"
    one = ("merge", run, "--method", "task", "--task", "rev-last", "--output", out)
    assert "PEFT has no gated adapters: write it as an adapter of ours (--to mhr)" in refuse(*one, "--to", "peft-lora")
    assert "which no weight can take up: keep it as an adapter (--to mhr)" in refuse(*one, "--to", "model")
    pretrain = ("pretrain", "--preset", "demo", "--method", "unipelt", "--output", out)
    assert "places in each block: leave targets out" in refuse(*pretrain, "--targets", "wo")
    assert "adapter.n_skills is 4, but shared has 1 skill" in refuse(*pretrain, "--n-skills", "4")
    assert "adapter.alpha has no effect with adapter.adapter gated" in refuse(*pretrain, "--set", "adapter.alpha=2")
    lora = ("pretrain", "--preset", "demo", "--method", "lora", "--width", "3", "--output", out)
    assert "adapter.width has no effect with adapter.adapter lora" in refuse(*lora)
    assert not out.exists()
