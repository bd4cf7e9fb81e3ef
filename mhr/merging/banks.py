"""Whole banks of one layout: averaged skill by skill, routing included, so that a soup of banks is a bank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mhr.checkpoint import AdapterCheckpoint, TensorFile
from mhr.errors import MergeError
from mhr.ops import weighted_average


@dataclass(frozen=True)
class Bank:
    """A bank on disk: what describes it, without tensors, and the file that holds them."""

    name: str
    checkpoint: AdapterCheckpoint
    file: TensorFile

    @property
    def digest(self) -> str:
        return self.file.digest


class AveragedFile(TensorFile):
    """`sum_k w_k x_k` of the tensors of several files, averaged when they are read. Whole numbers have to be the same."""

    def __init__(self, files: Sequence[TensorFile], weights: Sequence[float]):
        self.files, self.weights = files, list(weights)
        self.path, self.shapes, self.dtypes = files[0].path, files[0].shapes, files[0].dtypes
        told = " ".join(f"{file.digest} {weight}" for file, weight in zip(files, weights, strict=True))
        self.digest = hashlib.sha256(told.encode()).hexdigest()

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        averaged: dict[str, Tensor] = {}
        for name in self.shapes if names is None else names:
            tensors = [file.read([name])[name] for file in self.files]
            if tensors[0].is_floating_point():
                averaged[name] = weighted_average(tensors, self.weights)
            elif all(torch.equal(tensors[0], other) for other in tensors):
                averaged[name] = tensors[0]
            else:
                raise MergeError(f"tensor {name!r} of the banks holds whole numbers that differ and have no average")
        return averaged


def average_banks(banks: Sequence[Bank], weights: Sequence[float]) -> Bank:
    """The bank `sum_k w_k x_k`, computed when its tensors are read. Banks that weigh nothing are left out."""
    used = [(bank, w) for bank, w in zip(banks, weights, strict=True) if w > 0]
    file = AveragedFile([bank.file for bank, _ in used], [w for _, w in used])
    return Bank("the merged bank", banks[0].checkpoint, file)


def check_banks(banks: Sequence[Bank]) -> None:
    """Raise MergeError, naming what differs, where the banks are not of one layout: settings, tasks, layers, tensors."""
    first = banks[0]
    for other in banks[1:]:
        one, two = first.checkpoint, other.checkpoint
        for key, value in one.config.to_dict().items():
            if key not in ("targets", "modules_to_save") and two.config.to_dict()[key] != value:
                raise MergeError(
                    f"{first.name} has {key} {value!r}, {other.name} {two.config.to_dict()[key]!r}: banks that are merged "
                    "skill by skill have one layout; name a task with --task to merge what it is routed to"
                )
        for what in ("tasks", "layers", "groups", "modules"):
            if getattr(one, what) != getattr(two, what):
                raise MergeError(
                    f"{first.name} and {other.name} do not have the same {what}: banks that are merged skill by skill have one "
                    "layout; name a task with --task to merge what it is routed to"
                )
        for key, shape in first.file.shapes.items():
            if other.file.shapes.get(key) != shape or other.file.dtypes[key] != first.file.dtypes[key]:
                raise MergeError(
                    f"tensor {key!r} of {first.name} is {first.file.dtypes[key]} {shape}, that of {other.name} "
                    f"{other.file.dtypes.get(key)} {other.file.shapes.get(key)}: expected the same"
                )
