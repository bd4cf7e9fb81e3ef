"""Bases whose weights are quantised: an adapter is saved and opened again, and not folded into them."""

from __future__ import annotations

import pytest
import torch

from mhr import AdapterConfig, attach
from mhr.adapters import check_reopens, collapse_task, fingerprint, fold_into, load_adapter, read_adapter, save_adapter
from mhr.errors import MergeError
from tests.models import random_batch, tiny_model


def test_torchao_is_saved_and_opened_again_and_not_folded_into(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")

    def quantised() -> torch.nn.Module:
        model = tiny_model("llama")
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        return model

    model = quantised()
    bank = attach(model, AdapterConfig(method="poly", n_skills=2), ["a", "b"])
    check_reopens(model)
    with torch.no_grad():
        for p in bank.adapter_parameters():
            p.add_(0.1)
        batch = random_batch(model)
        tasks = ["b"] * len(batch["input_ids"])
        want = model(**batch, task_ids=tasks).logits
        save_adapter(model, tmp_path, base="tiny")
        again = quantised()
        assert fingerprint(again) == ""
        load_adapter(tmp_path, again)
        assert torch.equal(again(**batch, task_ids=tasks).logits, want)
    with pytest.raises(MergeError, match="is quantised .* with --model, or keep the adapter"):
        fold_into(quantised(), collapse_task(read_adapter(tmp_path), "b"))
