"""Heads on a quantised base: what is trained of them stays whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mhr.adapters import read_adapter
from mhr.evaluation import load_model, score
from mhr.merging import merge
from mhr.runs import RunConfig
from mhr.training import pretrain


@pytest.mark.parametrize(("name", "bits"), [("roberta", "8bit"), ("deberta-v2", "8bit")])
def test_a_head_on_a_quantised_encoder_trains_whole(
    name: str, bits: str, recipe_for: Callable[..., RunConfig], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    run = pretrain(recipe_for(name, quantize=bits), str(tmp_path / "run"), progress=False)
    loaded = load_model(run.path)
    assert loaded.heads is not None
    stored = read_adapter(run.adapter)
    for module in stored.modules:
        assert all(p.dtype == torch.float32 for p in loaded.model.get_submodule(module).parameters()), module
    said = score(run.path, part="training", progress=False).predictions
    whole = merge(run.path, method="task", task="three", to="model", output=tmp_path / "model")
    again = score(whole, tasks=run.config().tasks, names=["three"], progress=False).predictions
    before = torch.tensor([p.scores for p in said if p.task == "three"])
    torch.testing.assert_close(torch.tensor([p.scores for p in again]), before, rtol=0.05, atol=0.05)
