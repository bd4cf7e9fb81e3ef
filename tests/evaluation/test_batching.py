"""Batches: order, packing by length, and the batch size when memory runs out."""

from __future__ import annotations

import pytest
import torch

from mhr.errors import ConfigError, MhrError
from mhr.evaluation import batching
from mhr.evaluation.batching import in_batches

CPU = torch.device("cpu")
WORDS_OF_ALLOCATORS = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"
    ),
)


def test_results_are_in_the_order_of_the_items_and_the_longest_come_first() -> None:
    seen: list[list[int]] = []
    lengths = [3, 9, 1, 9, 5]
    found = in_batches(
        lambda batch: [lengths[i] * 10 for i in batch], lengths, device=CPU, batch_size=2, done=seen.append
    )
    assert found == [30, 90, 10, 90, 50]
    assert seen == [[1, 3], [4, 0], [2]]


def test_a_budget_of_padded_tokens_decides_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batching.TOKENS_PER_BATCH, "cpu", 20)
    seen: list[list[int]] = []
    in_batches(lambda batch: batch, [4, 4, 10, 30, 4, 4], device=CPU, done=seen.append)
    assert seen == [[3], [2, 0], [1, 4, 5]]


@pytest.mark.parametrize("error", WORDS_OF_ALLOCATORS, ids=["cuda", "cpu"])
def test_the_batch_is_halved_until_it_fits(error: RuntimeError) -> None:
    tried: list[int] = []

    def step(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 3:
            raise error
        return batch

    assert in_batches(step, [64] * 10, device=CPU) == list(range(10))
    assert tried == [10, 5, 2, 2, 2, 2, 2]


def test_a_single_item_that_does_not_fit_is_an_error() -> None:
    def step(batch: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MhrError, match=r"out of memory on cpu with a batch of 1 \(longest: 7 tokens\)"):
        in_batches(step, [7, 7, 7], device=CPU)
    with pytest.raises(MhrError, match="with a batch of 2 .*use a smaller batch size"):
        in_batches(step, [7, 7, 7], device=CPU, batch_size=2)


def test_other_errors_pass() -> None:
    def step(batch: list[int]) -> list[int]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_batches(step, [1, 2], device=CPU)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0, expected an integer of at least 1"):
        in_batches(lambda batch: batch, [1], device=CPU, batch_size=0)


def test_no_items() -> None:
    assert in_batches(lambda batch: batch, [], device=CPU) == []
