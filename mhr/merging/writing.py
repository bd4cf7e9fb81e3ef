"""Merged adapters as folders, written layer by layer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from mhr.checkpoint import TENSORS_FILE, AdapterCheckpoint, TensorWriter, write_config
from mhr.checkpoint.plain import KINDS, bank_size, plain_checkpoint
from mhr.errors import MergeError
from mhr.files import write_json_atomically
from mhr.interop import peft
from mhr.merging.banks import Bank
from mhr.merging.source import Source


def write_plain(source: Source, folder: Path, task: str) -> None:
    """A plain adapter as an adapter checkpoint of ours, see `plain_checkpoint`: method shared, one task."""
    size = bank_size((shape.rank, shape.alpha) for shape in source.shapes.values())
    described: AdapterCheckpoint | None = None
    with TensorWriter(folder / TENSORS_FILE) as file:
        for name in source.shapes:
            part = plain_checkpoint(KINDS[source.kind]({name: source.layer(name)}, source.base), task, size)
            described = described or part
            _add(file, part.tensors)
        for name in source.modules:
            _add(file, {f"modules.{name}.{key}": t for key, t in source.module(name).items()})
    assert described is not None
    config = dataclasses.replace(described.config, targets=list(source.shapes), modules_to_save=list(source.modules))
    checkpoint = dataclasses.replace(
        described,
        config=config,
        layers={name: shape.sizes for name, shape in source.shapes.items()},
        groups={name: name for name in source.shapes},
        modules=list(source.modules),
    )
    write_config(checkpoint, folder, file.size, file.sha256)


def write_bank(bank: Bank, folder: Path, dtype: torch.dtype | None = None) -> None:
    """A bank as an adapter checkpoint of ours, its skills and modules in `dtype` (None: as they are), its routing as it is."""
    with TensorWriter(folder / TENSORS_FILE) as file:
        for name in bank.file.shapes:
            tensor = bank.file.read([name])[name]
            casts = dtype is not None and tensor.is_floating_point() and not name.startswith("routers.")
            file.add(name, tensor.to(dtype) if casts else tensor)
    write_config(dataclasses.replace(bank.checkpoint, info={}), folder, file.size, file.sha256)


def write_peft(source: Source, folder: Path) -> None:
    """A plain LoRA or IA3 as a PEFT folder, see `mhr.interop.save_peft`."""
    if source.kind not in ("lora", "ia3"):
        raise MergeError(f"PEFT has no {source.kind} adapters: write it with --to mhr")
    with TensorWriter(folder / peft.TENSORS_FILE) as file:
        for name in source.shapes:
            _add(file, peft.layer_tensors(name, source.layer(name)))
        for name in source.modules:
            _add(file, peft.module_tensors(name, source.module(name)))
    ranks = {n: (s.rank, s.alpha) for n, s in source.shapes.items()} if source.kind == "lora" else None
    config = peft.peft_config(source.base, source.shapes, source.modules, ranks)
    write_json_atomically(folder / peft.CONFIG_FILE, config)


def _add(file: TensorWriter, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        file.add(name, tensor)
