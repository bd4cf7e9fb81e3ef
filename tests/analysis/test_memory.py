"""Memory by arithmetic: against counting by hand, and the table of docs/scale.md against what prints it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mhr.analysis.memory import FOUR_BIT, training_memory
from mhr.config import AdapterConfig
from mhr.layers import attach
from mhr_benchmarks import scale
from tests.models import VOCABULARY, WIDTH, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_the_parts_are_those_of_the_model() -> None:
    model = tiny_model("llama")
    blocks = model.model.layers
    weights = [sum(p.numel() for p in block.parameters()) for block in blocks]
    linear = sum(m.weight.numel() for m in blocks.modules() if isinstance(m, nn.Linear))
    around = sum(p.numel() for p in model.parameters()) - sum(weights)
    bank = attach(model, AdapterConfig(n_heads=2, rank=4), ["a", "b"])
    trained = sum(p.numel() for p in [*bank.adapter_parameters(), *bank.router_parameters()])

    one = training_memory(model, batch=3, length=5)
    assert one.base == 2 * (sum(weights) + around)
    assert (one.gathered, one.trained) == (0, 16 * trained)
    assert one.activations == 2 * 3 * 5 * (2 * WIDTH + 16 * WIDTH + 4 * 64)
    assert one.logits == 10 * 3 * 5 * VOCABULARY
    assert one.total == one.base + one.trained + one.activations + one.logits

    two = training_memory(model, batch=3, length=5, n_processes=2, sharded=True)
    assert two.base == sum(weights) + 2 * around
    assert (two.gathered, two.trained) == (4 * weights[0], 20 * trained)

    small = training_memory(model, batch=3, length=5, four_bit=True)
    assert small.base == pytest.approx(one.base - (2 - FOUR_BIT) * linear)


def test_the_table_of_the_page_is_what_its_command_prints() -> None:
    lines = scale.table(batch=4, length=1024, rank=16, n_skills=8, n_tasks=50)
    assert "\n".join(lines) in PAGE.read_text("utf-8")
    assert torch.get_default_device().type == "cpu"
