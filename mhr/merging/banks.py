"""Whole banks of one layout: averaged skill by skill, routing included, so that a soup of banks is a bank."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.finite import check_finite
from mhr.adapters.tensor_file import TensorFile
from mhr.errors import MergeError
from mhr.ops import weighted_average


class AveragedFile(TensorFile):
    """`sum_k w_k x_k` of the tensors of several files, averaged when they are read. Integers have to be the same."""

    def __init__(self, files: Sequence[TensorFile], weights: Sequence[float]):
        self.files, self.weights = files, list(weights)
        self.path, self.shapes, self.dtypes = files[0].path, files[0].shapes, files[0].dtypes
        contents = " ".join(f"{file.digest} {weight}" for file, weight in zip(files, weights, strict=True))
        self.digest = hashlib.sha256(contents.encode()).hexdigest()

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        averaged: dict[str, Tensor] = {}
        for name in self.shapes if names is None else names:
            tensors = [file.read([name])[name] for file in self.files]
            for file, tensor in zip(self.files, tensors, strict=True):
                check_finite({name: tensor}, str(file.path))
            if tensors[0].is_floating_point():
                averaged[name] = weighted_average(tensors, self.weights)
            elif all(torch.equal(tensors[0], other) for other in tensors):
                averaged[name] = tensors[0]
            else:
                raise MergeError(f"tensor {name!r} of the banks holds integers that differ and have no average")
        return averaged


def file_of(bank: AdapterCheckpoint) -> TensorFile:
    """The file of a bank that was opened and not read."""
    assert isinstance(bank.tensors, TensorFile)
    return bank.tensors


def average_banks(banks: Sequence[AdapterCheckpoint], weights: Sequence[float]) -> AdapterCheckpoint:
    """The bank `sum_k w_k x_k`, computed when its tensors are read. Banks that weigh nothing are left out."""
    used = [(bank, w) for bank, w in zip(banks, weights, strict=True) if w > 0]
    file = AveragedFile([file_of(bank) for bank, _ in used], [w for _, w in used])
    return dataclasses.replace(banks[0], tensors=file, name="the merged bank")


def check_same_layout(banks: Sequence[AdapterCheckpoint]) -> None:
    """Raise MergeError, naming what differs, where the banks are not of one layout: settings, tasks, layers, tensors."""
    one = banks[0]
    for two in banks[1:]:
        settings = two.config.to_dict()
        for key, value in one.config.to_dict().items():
            if key not in ("targets", "modules_to_save") and settings[key] != value:
                raise MergeError(
                    f"{one.name} has {key} {value!r}, {two.name} {settings[key]!r}: banks that are merged "
                    "skill by skill have one layout; name a task with --task to merge what it is routed to"
                )
        for what in ("tasks", "layers", "groups", "modules", "heads"):
            if getattr(one, what) != getattr(two, what):
                raise MergeError(
                    f"{one.name} and {two.name} do not have the same {what}: banks that are merged skill by skill have one "
                    "layout; name a task with --task to merge what it is routed to"
                )
        first, other = file_of(one), file_of(two)
        for key, shape in first.shapes.items():
            if other.shapes.get(key) != shape or other.dtypes[key] != first.dtypes[key]:
                raise MergeError(
                    f"tensor {key!r} of {one.name} is {first.dtypes[key]} {shape}, that of {two.name} "
                    f"{other.dtypes.get(key)} {other.shapes.get(key)}: expected the same"
                )
