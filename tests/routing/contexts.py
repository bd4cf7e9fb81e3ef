"""Contexts for tasks that are nothing but names."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from mhr import AdapterBank
from mhr.routing import Contexts


def embedding(task: str, size: int) -> Tensor:
    """A vector that a name stands for."""
    return torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(task.encode())))


def draw_contexts(contexts: Contexts, center: bool = False) -> None:
    """Contexts for the tasks that have none, each from its name."""
    new = [task for i, task in enumerate(contexts.tasks) if not contexts.knows(i)]
    if new:
        contexts.put({task: embedding(task, contexts.size) for task in new}, center)


def with_contexts(bank: AdapterBank) -> AdapterBank:
    """The bank, all of whose tasks have contexts where it routes by such."""
    if bank.contexts is not None:
        draw_contexts(bank.contexts)
    return bank
