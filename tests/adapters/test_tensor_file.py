"""Safetensors files that are written and read tensor by tensor."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mhr.adapters.tensor_file import TensorFile, TensorWriter, file_digest
from mhr.errors import CheckpointError

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
