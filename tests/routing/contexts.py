"""Contexts for tasks that are nothing but names."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from mhr import AdapterBank
from mhr.routing import TaskContexts
from mhr.routing.contexts import Contexts
from mhr.routing.generative_adapter import OuterProducts

SHOTS, TOKENS = 3, 4


def embedding(task: str, *size: int) -> Tensor:
    """A vector, or a tensor of them, that a name stands for."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(zlib.crc32(task.encode())))


def drawn(contexts: TaskContexts, task: str) -> Tensor:
    """What the context of a task is made of, by its name."""
    if isinstance(contexts, OuterProducts):
        return embedding(task, SHOTS, TOKENS, contexts.settings.width)
    assert isinstance(contexts, Contexts)
    return embedding(task, contexts.size)


def draw_contexts(contexts: TaskContexts, center: bool = False) -> None:
    """Contexts for the tasks that have none, each from its name."""
    new = [task for i, task in enumerate(contexts.tasks) if not contexts.knows(i)]
    if new:
        contexts.put({task: drawn(contexts, task) for task in new}, center)


def with_contexts(bank: AdapterBank, learning: bool = False) -> AdapterBank:
    """The bank, all of whose tasks have contexts where it routes by such. learning: as in pretraining, where it learns from examples."""
    if isinstance(bank.contexts, OuterProducts) and learning:
        bank.set_contexts({task: drawn(bank.contexts, task) for task in bank.tasks}, center=True)
    elif bank.contexts is not None:
        draw_contexts(bank.contexts)
    return bank
