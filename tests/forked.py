"""Work in processes that are forked from this one, so that nothing is imported again: alone, to be killed, or as a group of two."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from mhr.runs import RunConfig, RunFolder
from mhr.training import pretrain

Gradients = dict[str, dict[str, Tensor]]
"""Case -> parameter -> gradient."""


def forked(*works: Callable[[], Any]) -> list[int | None]:
    """The exit codes of processes that do one work each, side by side."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_do, args=(work,)) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, "they take too long"
    return [process.exitcode for process in processes]


def _do(work: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # what earlier tests have left is of one process
    work()


def in_two_processes(work: Callable[[int], Gradients], folder: Path) -> Gradients:
    """What `work` of rank 0 finds while `work` of rank 1 runs beside it, both in one process group. folder: a new one's place."""

    def one(rank: int) -> None:
        torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
        found = work(rank)
        if rank == 0:
            torch.save(found, folder / "found")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    assert forked(partial(one, 0), partial(one, 1)) == [0, 0]
    found: Gradients = torch.load(folder / "found", weights_only=True)
    return found


def as_torchrun(work: Callable[[], Any]) -> None:
    """Do `work` in two processes, each with the environment that torchrun gives it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def one(rank: int) -> None:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}, **{k: str(v) for k, v in own.items()})
        work()
        torch.distributed.destroy_process_group()

    assert forked(partial(one, 0), partial(one, 1)) == [0, 0]


def pretrained_by_two(config: RunConfig, output: Path, **more: Any) -> RunFolder:
    """A pretraining run of two processes. more: arguments of `pretrain`."""
    as_torchrun(lambda: pretrain(config, str(output), progress=False, **more))
    run = RunFolder.open(output)
    assert run.info["processes"] == 2
    return run


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
