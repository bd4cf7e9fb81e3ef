from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from mhr.data import Example, Task, TaskCollection
from mhr.data.samplers import ExampleDataset, LengthGroups, TaskSampler, WholeRun, mixings, weights_of
from mhr.errors import ConfigError, DataError

SIZES = {"a": 5, "b": 50, "c": 500}


def dataset(sizes: dict[str, int] = SIZES) -> ExampleDataset:
    tasks = [Task(name, [Example(name, str(i), ("x",)) for i in range(n)]) for name, n in sizes.items()]
    return ExampleDataset(TaskCollection(tasks))


def drawn(data: ExampleDataset, sampler: TaskSampler) -> Counter[str]:
    return Counter(data[i].task for i in sampler)


def test_proportional_is_a_shuffle():
    data = dataset()
    sampler = TaskSampler(data.sizes)
    assert len(sampler) == 555
    assert sorted(sampler) == list(range(555))
    assert list(sampler) != list(range(555))


def test_shares_of_tasks():
    data = dataset()
    assert drawn(data, TaskSampler(data.sizes, "uniform")) == {"a": 185, "b": 185, "c": 185}
    shares = drawn(data, TaskSampler(data.sizes, "temperature", temperature=2.0))
    total = 5**0.5 + 50**0.5 + 500**0.5
    for name, n in SIZES.items():
        assert abs(shares[name] - 555 * n**0.5 / total) <= 1
    assert drawn(data, TaskSampler(data.sizes, max_per_task=50)) == {"a": 5, "b": 50, "c": 50}


@pytest.mark.parametrize("limit", [None, 50])
@pytest.mark.parametrize("mixing", sorted(mixings))
def test_weights_multiply_the_shares(mixing: str, limit: int | None):
    data = dataset()
    sampler = TaskSampler(data.sizes, mixing, temperature=2.0, max_per_task=limit, weights=[8.0, 1.0, 0.5])
    sizes = [min(n, limit or n) for n in SIZES.values()]
    power = {"proportional": 1.0, "uniform": 0.0, "temperature": 0.5}[mixing]
    shares = [w * n**power for w, n in zip((8.0, 1.0, 0.5), sizes, strict=True)]
    epochs, found = 20, Counter()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order = Counter(data[i].task for i in sampler)
        assert order.total() == sum(sizes) == len(sampler)
        for name, share in zip(SIZES, shares, strict=True):
            assert abs(order[name] - sum(sizes) * share / sum(shares)) <= 1
        found += order
    assert sum(found.values()) == epochs * sum(sizes)


def test_weights_that_are_all_one_change_nothing():
    assert list(TaskSampler([3, 0, 17], weights=[1.0] * 3)) == list(TaskSampler([3, 0, 17]))
    assert list(TaskSampler([3, 0, 17], weights=[2.0] * 3)) == list(TaskSampler([3, 0, 17]))


def test_weights_by_the_names_of_tasks():
    assert weights_of({"b": 2.0}, ["a", "b"]) == [1.0, 2.0]
    assert weights_of({}, ["a", "b"]) is None
    with pytest.raises(ConfigError, match="names 'summs', which is no training task: did you mean 'sums'"):
        weights_of({"summs": 2.0}, ["sums", "capitals"])
    with pytest.raises(
        ConfigError, match="names 'c', which is left out of training: it has no choices; leave its weight"
    ):
        weights_of({"c": 2.0}, ["a"], {"c": "it has no choices"})


def test_no_example_comes_again_before_all_others_of_its_task():
    data = dataset()
    counts = Counter(TaskSampler(data.sizes, "uniform"))
    for name, low in (("a", 0), ("b", 5), ("c", 55)):
        times = [counts[i] for i in range(low, low + SIZES[name])]
        assert max(times) - min(times) <= 1


def test_small_shares_are_fair_over_epochs():
    sampler = TaskSampler([1] * 100, "uniform", max_per_task=1)
    sampler.length = 30
    seen: Counter[int] = Counter()
    for epoch in range(200):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == 30
        seen.update(order)
    assert len(seen) == 100
    assert max(seen.values()) < 3 * min(seen.values())


@pytest.mark.parametrize("mixing", sorted(mixings))
def test_the_order_depends_on_seed_and_epoch_alone(mixing: str):
    first, again = (TaskSampler([3, 0, 17], mixing, temperature=3.0, seed=5) for _ in range(2))
    zero = list(first)
    assert zero == list(first) == list(again)
    first.set_epoch(1)
    one = list(first)
    assert one != zero
    again.set_epoch(1)
    assert list(again) == one
    assert len(zero) == len(one) == len(first) == 20
    assert list(TaskSampler([3, 0, 17], mixing, temperature=3.0, seed=6)) != zero


def test_skipping_batches_resumes_and_ranks_share_one_order():
    data = dataset({"a": 10, "b": 30})

    def loader(**kwargs: int) -> DataLoader:
        plain = DataLoader(
            data, 4, sampler=TaskSampler(data.sizes, "uniform"), collate_fn=lambda b: [e.input for e in b]
        )
        prepared = prepare_data_loader(plain, put_on_device=False, **kwargs)
        prepared.set_epoch(2)
        return prepared

    whole = list(loader())
    assert list(skip_first_batches(loader(), 3)) == whole[3:]
    ranks = [list(loader(num_processes=2, process_index=rank)) for rank in range(2)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == whole


LENGTHS = np.random.default_rng(0).integers(1, 500, 555)


def grouped(batch: int = 4, seed: int = 3, length: int = 1000, mixing: str = "uniform") -> WholeRun:
    sampler = TaskSampler(dataset().sizes, mixing, seed=seed)
    return WholeRun(sampler, length, LengthGroups(LENGTHS, batch, seed))


@pytest.mark.parametrize(("mixing", "left"), [("proportional", 1 / 10), ("uniform", 1 / 2)])
def test_grouping_by_length_reorders_within_windows(mixing: str, left: float):
    plain = list(WholeRun(TaskSampler(dataset().sizes, mixing, seed=3), 1000))
    order = list(grouped(mixing=mixing))
    assert order != plain
    for start in range(0, 1000, 200):  # 50 batches of 4
        assert Counter(order[start : start + 200]) == Counter(plain[start : start + 200])
    batches = [LENGTHS[order[start : start + 4]] for start in range(0, 1000, 4)]
    # Little is left of the padding without grouping, more where a task of 5 examples makes a third of a window, and a batch may
    # hold each of them once. Batches come in no order of length.
    padding = [
        sum(int((b.max() - b).sum()) for b in (LENGTHS[o[s : s + 4]] for s in range(0, 1000, 4)))
        for o in (plain, order)
    ]
    assert padding[1] < padding[0] * left
    rises = sum(a.max() < b.min() for a, b in zip(batches, batches[1:], strict=False))
    assert 60 < rises < 190


def test_grouped_batches_are_ordered_by_length_before_they_are_shuffled():
    order = LengthGroups(range(200), 4, seed=1)(iter(np.random.default_rng(1).permutation(200).tolist()))
    batches = [tuple(batch) for batch in np.fromiter(order, int).reshape(-1, 4)]
    assert sorted(batches) == [tuple(range(start, start + 4)) for start in range(0, 200, 4)]
    assert batches != sorted(batches)


@pytest.mark.parametrize(("size", "batch"), [(20, 4), (200, 8), (32, 8), (5, 5)])
def test_no_example_stands_twice_in_a_grouped_batch(size: int, batch: int):
    """Of one small task, whose epochs are shorter than a window."""
    lengths = np.random.default_rng(2).integers(5, 60, size)
    order = list(WholeRun(TaskSampler([size], seed=1), 20 * size, LengthGroups(lengths, batch, 1)))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    repeats = [b for b in batches if len(set(b)) < len(b)]
    assert len(repeats) <= len(order) / (LengthGroups.WINDOW * batch) + 1  # at most what is left at the end of a window
    assert Counter(order) == Counter(WholeRun(TaskSampler([size], seed=1), 20 * size))


def test_what_occurs_more_often_than_there_are_batches_is_repeated_at_last():
    order = LengthGroups([3, 1], 2, seed=0)(iter([0, 0, 0, 1, 0]))
    assert sorted(order) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("length", [1, 3, 199, 201, 998])
def test_grouping_keeps_every_draw_of_a_run_that_ends_anywhere(length: int):
    plain = list(WholeRun(TaskSampler(dataset().sizes, "uniform", seed=3), length))
    assert Counter(grouped(length=length)) == Counter(plain)


def test_the_grouped_order_depends_on_the_seed_alone_and_is_skipped_exactly():
    order = list(grouped())
    assert order == list(grouped())
    assert order != list(grouped(seed=4))
    assert order[:600] == list(grouped(length=600))

    def loader(**kwargs: int) -> DataLoader:
        plain = DataLoader(range(555), 4 // kwargs.get("num_processes", 1), sampler=grouped(), collate_fn=list)
        return prepare_data_loader(plain, put_on_device=False, **kwargs)

    whole = list(loader())
    assert [i for batch in whole for i in batch] == order
    assert list(skip_first_batches(loader(), 70)) == whole[70:]
    ranks = [list(loader(num_processes=2, process_index=rank)) for rank in range(2)]
    assert [one + two for one, two in zip(*ranks, strict=True)] == whole


def test_faulty_settings_are_told():
    for weights in ([1.0], [1.0, 0.0], [1.0, float("inf")], [-1.0, 1.0]):
        with pytest.raises(ConfigError, match="expected a number above 0 for each of 2 tasks"):
            TaskSampler([1, 1], weights=weights)
    with pytest.raises(ConfigError, match="unknown sampler 'unifrm': did you mean 'uniform'"):
        TaskSampler([1], "unifrm")
    with pytest.raises(ConfigError, match="temperature is 0, expected a number above 0"):
        TaskSampler([1], temperature=0)
    with pytest.raises(ConfigError, match="max_per_task is 0, expected at least 1"):
        TaskSampler([1], max_per_task=0)
    with pytest.raises(DataError, match="its 1 tasks have no train examples"):
        dataset({"a": 0})
