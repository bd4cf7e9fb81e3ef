"""Prompts and prefixes through the commands: PEFT folders of a run, of each task, averages, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mhr
from mhr import AdapterConfig
from mhr.adapters import save_adapter
from mhr.backbones import load_backbone
from mhr.evaluation import load_model
from tests.cli.running import refuse, succeed
from tests.models import randomise

peft = pytest.importorskip("peft")

T5 = "builtin:t5-tiny"
NAMES = ["rev-last", "next-first"]


def bank(folder: Path, **settings: Any) -> Path:
    """A run of a bank in which everything has a value."""
    model, _ = load_backbone(T5)
    randomise(mhr.attach(model, AdapterConfig(virtual_tokens=3, method="private", **settings), NAMES))
    save_adapter(model, folder / "bank", base=T5)
    succeed("import", folder / "bank", "--tasks", "builtin:skills", "--output", folder / "run")
    return folder / "run"


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_a_task_is_written_for_peft_and_computes_the_same(kind: str, tmp_path: Path) -> None:
    run = bank(tmp_path, adapter=kind)
    base = load_backbone(T5)[0]
    shown = succeed(
        "merge", run, "--method", "task", "--task", "rev-last", "--to", "peft-lora", "--output", tmp_path / "p"
    )
    assert shown.exit_code == 0
    ours = load_model(run, task="rev-last")
    batch = ours.tokenizer(["rev last: bcdh", "rev last: hgab"], return_tensors="pt")
    batch["labels"] = torch.tensor([[5, 6, 7], [8, 9, 4]])
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "p").eval()
    with torch.no_grad(), ours.routing(["rev-last"] * 2):
        torch.testing.assert_close(ours.model(**batch).logits, theirs(**batch).logits, rtol=1e-4, atol=1e-4)
    succeed("merge", run, "--each-task", "--output", tmp_path / "each")
    succeed("merge", run, "--method", "uniform", "--output", tmp_path / "mean")
    succeed("evaluate", tmp_path / "mean", "--task", "rev-last", "--limit", "2", "--tasks", "builtin:skills")
    said = refuse("merge", run, "--method", "uniform", "--to", "model", "--output", tmp_path / "m")
    assert "virtual tokens in front of the input, which no weight can take up: keep it as an adapter (--to mhr)" in said
    assert "none: use" in refuse(
        "merge", tmp_path / "mean", tmp_path / "mean", "--method", "mera", "--output", tmp_path / "m"
    )
    assert "expected LORA or IA3" in refuse("evaluate", tmp_path / "p", "--tasks", "builtin:skills")
    other = tmp_path / "other"
    other.mkdir()
    model, _ = load_backbone(T5)
    randomise(mhr.attach(model, AdapterConfig(virtual_tokens=5, method="shared", adapter=kind), ["rev-last"]))
    save_adapter(model, other, base=T5)
    assert "has rank 3 in" in refuse(
        "merge", tmp_path / "mean", other, "--method", "uniform", "--output", tmp_path / "m"
    )
    assert not (tmp_path / "m").exists()
