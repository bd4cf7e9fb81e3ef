"""Adapters whose values are no numbers, or whose tensors have other shapes than their configuration says: one line, whatever reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mhr import AdapterConfig, attach
from mhr.adapters import checkpoint_of, load_adapter, open_plain, read_adapter, write_adapter
from mhr.adapters.open import open_bank, open_skills
from mhr.errors import CheckpointError
from mhr.experts import route_tokens
from mhr.merging import merge
from tests.merging.loras import lora, save
from tests.models import randomise, tiny_model

TASKS = ["boolq", "rte"]
METHODS = ("uniform", "ties", "dare_ties", "sce", "model_stock", "slerp", "mera")


def damaged(folder: Path, change: Callable[[Tensor], Tensor], key: str, adapter: str = "lora") -> Path:
    """A bank one of whose tensors was changed after training, with a configuration and a digest that say nothing of it."""
    model = tiny_model("t5")
    config = AdapterConfig(n_heads=1, n_skills=2, rank=2, targets=["q", "v"], adapter=adapter)
    randomise(attach(model, config, TASKS))
    checkpoint = checkpoint_of(model, "tiny")
    name = next(name for name in checkpoint.tensors if name.endswith(key))
    changed = {**checkpoint.tensors, name: change(checkpoint.tensors[name]).contiguous()}
    return write_adapter(dataclasses.replace(checkpoint, tensors=changed), folder)


def spoiled(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.flatten()[0] = float("nan")
    return tensor


def read_all(folder: Path) -> None:
    for plain in (open_plain(folder, "rte"), *open_skills(open_bank(folder))):
        plain.read()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_no_merge_takes_what_is_not_finite(method: str, value: float, tmp_path: Path) -> None:
    paths = save(tmp_path, lora(0), lora(1))
    file = Path(paths[1]) / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).flatten()[0] = value
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="of .*input-1 holds nan or infinity: train it again"):
        merge(paths, method=method, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("adapter", "key"), [("lora", "bank_b"), ("ia3", "bank_v"), ("film", "bank_shift"), ("bottleneck", "bias_a")]
)
def test_a_bank_is_not_read_with_values_that_are_not_finite(adapter: str, key: str, tmp_path: Path) -> None:
    folder = damaged(tmp_path / "bank", spoiled, key, adapter)
    said = "holds nan or infinity: train it again"
    with pytest.raises(CheckpointError, match=said):
        read_all(folder)
    with pytest.raises(CheckpointError, match=said):
        load_adapter(folder, tiny_model("t5"))
    with pytest.raises(CheckpointError, match=said):
        merge([folder, folder], method="soup-uniform", output=tmp_path / "soup")
    with pytest.raises(CheckpointError, match=said):
        merge(folder, method="task", task="rte", output=tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank"]


def test_tokens_are_not_routed_by_what_is_not_finite(tmp_path: Path) -> None:
    folder = damaged(tmp_path / "bank", spoiled, "bank_a")
    with pytest.raises(CheckpointError, match="holds nan or infinity"):
        route_tokens(folder, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [slice(None, -1), slice(1, None)])
@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize(
    ("adapter", "key"),
    [
        ("lora", "bank_a"),
        ("lora", "bank_b"),
        ("ia3", "bank_v"),
        ("film", "bank_scale"),
        ("film", "bank_shift"),
        ("bottleneck", "bank_a"),
        ("bottleneck", "bias_b"),
    ],
)
def test_tensors_of_other_shapes(adapter: str, key: str, axis: int, cut: slice, tmp_path: Path) -> None:
    folder = damaged(tmp_path / "bank", lambda t: t.movedim(axis, 0)[cut].movedim(0, axis), key, adapter)
    said = "other shapes in mhr_adapter.safetensors than its configuration says"
    with pytest.raises(CheckpointError, match=said):
        read_all(folder)
    with pytest.raises(CheckpointError, match="has shape"):
        load_adapter(folder, tiny_model("t5"))


def test_a_layer_without_tensors(tmp_path: Path) -> None:
    model = tiny_model("t5")
    randomise(attach(model, AdapterConfig(n_heads=1, targets=["q"]), TASKS))
    checkpoint = checkpoint_of(model, "tiny")
    kept = {name: t for name, t in checkpoint.tensors.items() if "decoder.block.1.layer.0.SelfAttention.q" not in name}
    assert len(kept) < len(checkpoint.tensors)
    folder = write_adapter(dataclasses.replace(checkpoint, tensors=kept), tmp_path / "bank")
    with pytest.raises(
        CheckpointError, match="lacks the tensors of its layer 'decoder.block.1.layer.0.SelfAttention.q'"
    ):
        open_plain(folder, "rte")
    assert torch.equal(*(read_adapter(folder).tensors[name] for name in [next(iter(kept))] * 2))
