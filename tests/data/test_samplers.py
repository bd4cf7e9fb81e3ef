from __future__ import annotations

from collections import Counter

import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from mhr.data import Example, Task, TaskCollection
from mhr.data.samplers import ExampleDataset, TaskSampler, mixings
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


def test_faulty_settings_are_told():
    with pytest.raises(ConfigError, match="unknown sampler 'unifrm': did you mean 'uniform'"):
        TaskSampler([1], "unifrm")
    with pytest.raises(ConfigError, match="temperature is 0, expected a number above 0"):
        TaskSampler([1], temperature=0)
    with pytest.raises(ConfigError, match="max_per_task is 0, expected at least 1"):
        TaskSampler([1], max_per_task=0)
    with pytest.raises(DataError, match="its 1 tasks have no train examples"):
        dataset({"a": 0})
