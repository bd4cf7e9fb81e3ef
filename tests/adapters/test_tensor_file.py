"""Safetensors files that are written and read tensor by tensor."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mhr import AdapterConfig, attach
from mhr.adapters import save_adapter
from mhr.adapters.tensor_file import TensorFile, TensorWriter, file_digest
from mhr.errors import CheckpointError
from mhr.merging import merge
from tests.models import tiny_model

TENSORS = {
    "float": torch.randn(3, 5),
    "brain": torch.randn(7).bfloat16(),
    "half": torch.randn(2, 1, 3).half(),
    "double": torch.randn(4, dtype=torch.float64),
    "count": torch.tensor(3),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "turned": torch.randn(4, 6).T,
}


def write(path: Path) -> TensorWriter:
    with TensorWriter(path) as file:
        for name, tensor in TENSORS.items():
            file.add(name, tensor)
    return file


def test_the_library_reads_what_is_written(tmp_path):
    path = tmp_path / "x.safetensors"
    written = write(path)
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert written.size == path.stat().st_size
    assert (
        written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == file_digest(path) == TensorFile(path).digest
    )
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_library_writes_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, path)
    file = TensorFile(path)
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert file.dtypes == {name: tensor.dtype for name, tensor in TENSORS.items()}
    assert file.read(["float"]).keys() == {"float"}
    for name, tensor in file.read().items():
        assert torch.equal(tensor, TENSORS[name])


def test_tensors_do_not_follow_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path)
    found = TensorFile(path).read(["float"])["float"]
    data = bytearray(path.read_bytes())
    data[-200:] = bytes(200)
    path.write_bytes(data)
    assert torch.equal(found, TENSORS["float"])


def test_nothing_is_left_of_a_file_that_is_not_finished(tmp_path):
    def fail() -> None:
        with TensorWriter(tmp_path / "x.safetensors") as file:
            file.add("float", TENSORS["float"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path)
    file = TensorFile(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot read .*x.safetensors"):
        file.read()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_a_dtype_cannot_hold_is_not_written(tmp_path, value):
    tensors = {"a": torch.arange(3), "b": torch.tensor([1.0, value]).half()}
    line = "tensor 'b' of x.safetensors would have values that float16 cannot hold"
    with pytest.raises(CheckpointError, match=line), TensorWriter(tmp_path / "x.safetensors") as file:
        file.add_all(tensors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["mhr", "peft-lora", "peft-poly"])
def test_a_merge_that_overflows_leaves_nothing(tmp_path, to):
    model = tiny_model("llama")
    attach(model, AdapterConfig(n_heads=2, n_skills=2, rank=2, targets=["q_proj"]), ["boolq"])
    for layer in model.mhr.layers.values():
        layer.bank()["bank_b"].data.fill_(1e5)
    save_adapter(model, tmp_path / "bank", base="tiny")
    with pytest.raises(CheckpointError, match="would have values that float16 cannot hold: write it in another dtype"):
        merge(tmp_path / "bank", to=to, dtype="float16", output=tmp_path / "narrow")
    assert [path.name for path in tmp_path.iterdir()] == ["bank"]
    merge(tmp_path / "bank", to=to, dtype="bfloat16", output=tmp_path / "wide")
