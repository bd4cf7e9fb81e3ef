"""Gradients that two processes find together, each on half of a batch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Gradients = dict[str, dict[str, Tensor]]
"""Case -> parameter -> gradient."""


def in_two_processes(work: Callable[[int], Gradients], folder: Path) -> Gradients:
    """What `work` of rank 0 finds while `work` of rank 1 runs beside it, both in one process group. folder: a new one's place."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")  # so that nothing is imported again
    both = [context.Process(target=_one, args=(work, rank, folder)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in both] == [0, 0]
    found: Gradients = torch.load(folder / "found", weights_only=True)
    return found


def _one(work: Callable[[int], Gradients], rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    found = work(rank)
    if rank == 0:
        torch.save(found, folder / "found")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def gradients_of_half(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    ids: Sequence[str],
    rank: int,
    loss: Callable[[Any], Tensor],
    **settings: Any,
) -> dict[str, Tensor]:
    """The gradients of both processes' losses together, by the names of the model's parameters, from process `rank` with its half of a batch.

    loss      sums over the examples of a model's output
    settings  of DistributedDataParallel
    """
    parallel = nn.parallel.DistributedDataParallel(model, **settings)
    own = slice(rank * len(ids) // 2, (rank + 1) * len(ids) // 2)
    loss(parallel(**{name: t[own] for name, t in batch.items()}, task_ids=list(ids[own]))).backward()
    return {name: 2 * p.grad for name, p in model.named_parameters() if p.grad is not None}  # it takes the mean
