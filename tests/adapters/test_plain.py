"""Plain adapters: of a bank they keep what training that goes on from them still has a use for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mhr
from mhr import AdapterConfig
from mhr.adapters import (
    AdapterCheckpoint,
    PlainAdapter,
    attach_plain,
    checkpoint_of,
    collapse,
    collapse_task,
    open_plain,
    plain_checkpoint,
    read_adapter,
    save_adapter,
)
from mhr.adapters.collapse import take_skill
from mhr.adapters.layer import Shape
from mhr.adapters.open import collapsed, open_bank
from tests.models import random_batch, randomise, tiny_model

TASKS = ["a", "b"]
CASES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "alpha": 5.0, "dropout": 0.3, "modules_to_save": ["lm_head"]},
    "lora of parts": {"targets": ["c_attn"], "parts": ["q", "v"], "rank": 6, "dropout": 0.3},
    "drawn loras": {"method": "adamix", "n_skills": 2, "dropout": 0.3},
    "private loras": {"method": "private", "dropout": 0.3},
    "bottleneck": {"method": "poly", "adapter": "bottleneck", "rank": 3, "norm": True},
    "ia3": {"method": "poly", "adapter": "ia3"},
    "film": {"method": "poly", "adapter": "film"},
    "bias": {"method": "poly", "adapter": "bias"},
    "recurrent": {"method": "private", "adapter": "recurrent", "rank": 3},
    "prompt": {"method": "poly", "adapter": "prompt", "virtual_tokens": 3},
    "prefix": {"method": "poly", "adapter": "prefix", "virtual_tokens": 3},
    "gated": {"method": "poly", "adapter": "gated", "rank": 2, "width": 3, "virtual_tokens": 5},
}
DROPPED = {
    **dict.fromkeys(("method", "n_skills", "n_heads", "share"), "there is one skill"),
    **dict.fromkeys(("granularity", "noise", "temperature", "straight_through", "router"), "nothing is routed"),
    "init": "its values are given",
    "targets": "its layers are named one by one",
}
CONVERSIONS: dict[str, Callable[[AdapterCheckpoint], PlainAdapter]] = {
    "average": lambda bank: collapse(bank, None),
    "task": lambda bank: collapse_task(bank, "a"),
    "skill": lambda bank: take_skill(bank, 1),
}


def bank_for(case: str) -> tuple[Any, AdapterConfig]:
    model = tiny_model("gpt2" if case in ("lora of parts", "bias") else "llama")
    return model, mhr.attach(model, AdapterConfig(**CASES[case]), TASKS).config


def test_every_setting_is_kept_in_a_case_or_dropped_for_a_reason() -> None:
    kept = {name for flags in CASES.values() for name in flags} - DROPPED.keys()
    assert kept | DROPPED.keys() == {field.name for field in dataclasses.fields(AdapterConfig)}


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_settings_of_a_bank_are_those_of_what_it_comes_down_to(case: str, conversion: str) -> None:
    model, config = bank_for(case)
    found = plain_checkpoint(CONVERSIONS[conversion](checkpoint_of(model, "tiny"))).config
    for name in CASES[case].keys() - DROPPED.keys():
        assert getattr(found, name) == getattr(config, name), name


OF_THE_FILE = {"name", "task", "digest", "run"}
"""Fields that say where an adapter is from."""


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_a_bank_on_disk_comes_down_to_the_same_as_in_memory(case: str, conversion: str, tmp_path: Path) -> None:
    model, _ = bank_for(case)
    randomise(model.mhr)
    path = save_adapter(model, tmp_path / "adapter", base="tiny")
    stored = open_bank(path)
    assert stored is not None
    found = open_plain(path, "a") if conversion == "task" else collapsed(stored, CONVERSIONS[conversion], conversion)
    truth = CONVERSIONS[conversion](read_adapter(path))
    for field in dataclasses.fields(PlainAdapter):
        one, other = getattr(found, field.name), getattr(truth, field.name)
        if field.name == "layers":
            one, other = ({name: layer.tensors() for name, layer in layers.items()} for layers in (one, other))
        if field.name == "shapes":  # in memory a vector is not known to have inputs
            one = {name: dataclasses.replace(shape, sizes=known(shape, other[name])) for name, shape in one.items()}
        if field.name in ("layers", "modules"):
            one, other = ({name: dict(part) for name, part in parts.items()} for parts in (one, other))
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        elif field.name not in OF_THE_FILE:
            assert one == other, field.name


def known(shape: Shape, least: Shape) -> Any:
    """The sizes that `least` has, as `shape` has them."""
    return tuple(None if other is None else size for size, other in zip(shape.sizes, least.sizes, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_average_that_trains_on_drops_what_its_bank_did(dropout: float) -> None:
    model = tiny_model("t5")
    randomise(mhr.attach(model, AdapterConfig(n_heads=2, n_skills=2, rank=2, dropout=dropout), TASKS))
    plain = collapse(checkpoint_of(model, "tiny"), None)
    mhr.detach(model)
    attach_plain(model, plain)
    model.train()
    batch = random_batch(model)
    one, other = (model(**batch).logits for _ in range(2))
    assert torch.equal(one, other) == (not dropout)
