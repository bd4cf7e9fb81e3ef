"""Plain adapters and banks as adapter checkpoints of ours, written layer by layer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from mhr.adapters.checkpoint import CONTEXTS, TENSORS_FILE, AdapterCheckpoint, write_config
from mhr.adapters.plain import PlainAdapter, describe_plain, plain_tensors
from mhr.adapters.tensor_file import TensorWriter


def write_plain(plain: PlainAdapter, folder: Path, task: str) -> None:
    """A plain adapter as `plain_checkpoint` makes it: method shared, one task."""
    with TensorWriter(folder / TENSORS_FILE) as file:
        for part in plain_tensors(plain):
            file.add_all(part)
    write_config(describe_plain(plain, task), folder, file.size, file.sha256)


def write_bank(bank: AdapterCheckpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """A bank, its skills and modules in `dtype` (None: as they are), its routing as it is."""
    with TensorWriter(folder / TENSORS_FILE) as file:
        for name, tensor in bank.tensors.items():
            casts = dtype is not None and tensor.is_floating_point() and not name.startswith(("routers.", CONTEXTS))
            file.add(name, tensor.to(dtype) if casts else tensor)
    write_config(dataclasses.replace(bank, info={}), folder, file.size, file.sha256)
