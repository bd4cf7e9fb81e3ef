"""Batches of like length, the longest first, of a size found by trying."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from mhr.errors import ConfigError, MhrError

Result = TypeVar("Result")

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65536}
"""Where the search for a batch size starts: padded tokens in one batch, by type of device."""


def in_batches(
    step: Callable[[list[int]], Sequence[Result]],
    lengths: Sequence[int],
    *,
    device: torch.device,
    batch_size: int | None = None,
    equal: bool = False,
    done: Callable[[list[int]], None] | None = None,
) -> list[Result]:
    """`step` over all items in batches, its results in the order of the items.

    step        takes the indices of one batch and returns one result for each
    lengths     tokens that each item takes up; items are batched by length so that little is padding, and the longest come
                first so that a lack of memory shows at once
    batch_size  items a batch; None packs as many as fit a budget of padded tokens, which is halved each time that memory
                runs out
    equal       put only items of one length into a batch, so that nothing is padded
    done        called with the indices of each batch after it

    Raises ConfigError for a batch size below 1, MhrError where a single item, or the batch size asked for, does not fit.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected an integer of at least 1")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    results: dict[int, Result] = {}
    budget = TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"])
    while len(results) < len(order):
        longest = max(lengths[order[len(results)]], 1)
        batch = order[len(results) :][: batch_size or max(budget // longest, 1)]
        if equal:
            batch = [i for i in batch if lengths[i] == lengths[batch[0]]]
        try:
            found = step(batch)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if batch_size is not None or len(batch) == 1:
                raise MhrError(
                    f"out of memory on {device} with a batch of {len(batch)} (longest: {longest} tokens): "
                    "use a smaller batch size or shorter inputs"
                ) from error
            budget = longest * (len(batch) // 2)
        else:
            results.update(zip(batch, found, strict=True))
            if done is not None:
                done(batch)
            continue
        # Outside the handler, so that the failed step's tensors, which its traceback holds, are gone.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return [results[i] for i in range(len(order))]


def _out_of_memory(error: BaseException) -> bool:
    """Whether an allocator failed: CUDA raises an error of its own, the CPU's is known by its words only."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in str(error)
        or "can't allocate memory" in str(error)
    )
