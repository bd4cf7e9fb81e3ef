"""In which order training sees the examples of many tasks, and how often each task comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

from mhr.data.example import Example, TaskCollection
from mhr.errors import ConfigError, DataError
from mhr.registry import Registry

mixings: Registry[Callable[[np.ndarray, float], np.ndarray]] = Registry("sampler")
"""Task sizes and a temperature -> unnormalised weight of each task."""


@mixings.register("proportional")
def _proportional(sizes: np.ndarray, temperature: float) -> np.ndarray:
    return sizes


@mixings.register("uniform")
def _uniform(sizes: np.ndarray, temperature: float) -> np.ndarray:
    return np.where(sizes > 0, 1.0, 0.0)


@mixings.register("temperature")
def _temperature(sizes: np.ndarray, temperature: float) -> np.ndarray:
    return sizes ** (1.0 / temperature)


class ExampleDataset(Dataset[Example]):
    """The examples of one split of a collection, task after task. `sizes` holds each task's number, in their order."""

    def __init__(self, tasks: TaskCollection, split: str = "train"):
        self.tasks = list(tasks)
        parts = [task.split(split) for task in tasks.values()]
        self.sizes = [len(part) for part in parts]
        self._examples = [example for part in parts for example in part]
        if not self._examples:
            raise DataError(f"{tasks.source or 'collection'}: its {len(tasks)} tasks have no {split} examples")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


class TaskSampler(Sampler[int]):
    """Indices into an ExampleDataset, epoch by epoch.

    Task t, of n_t examples, is drawn with probability p_t:

        proportional  p_t ~ n_t          uniform  p_t ~ 1          temperature  p_t ~ n_t ^ (1 / temperature)

    with n_t replaced by min(n_t, max_per_task) where that is given (examples-proportional mixing with a limit, Raffel
    et al. 2020, arXiv 1910.10683). An epoch has sum_t min(n_t, max_per_task) draws, p_t of them from task t up to
    rounding, and takes no example of a task again before all others of it were taken: proportional without a limit is
    a plain shuffle.

    The order depends on the seed and the epoch alone. So every rank draws the same, and skipping the batches of an
    epoch that are done resumes exactly; `set_epoch` is called by the Trainer.

    Raises ConfigError for a mixing that is unknown and for a temperature or limit that is not positive.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        mixing: str = "proportional",
        *,
        temperature: float = 1.0,
        max_per_task: int | None = None,
        seed: int = 0,
    ):
        if not temperature > 0:
            raise ConfigError(f"sampler temperature is {temperature}, expected a number above 0")
        if max_per_task is not None and max_per_task < 1:
            raise ConfigError(f"max_per_task is {max_per_task}, expected at least 1")
        self.sizes = np.asarray(sizes, dtype=np.int64)
        capped = self.sizes if max_per_task is None else np.minimum(self.sizes, max_per_task)
        self.length = int(capped.sum())
        weights = np.asarray(mixings[mixing](capped.astype(np.float64), temperature), dtype=np.float64)
        self.probabilities = weights / weights.sum()
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        # One random offset rounds all shares at once: they sum to the length, and on average none is favoured.
        edges = np.floor(np.cumsum(self.probabilities) * self.length + rng.random() + 1e-9).astype(np.int64)
        edges[-1] = self.length
        draws = np.diff(edges, prepend=0)
        first = np.concatenate(([0], np.cumsum(self.sizes)[:-1]))
        order = [start + _walk(rng, size, n) for start, size, n in zip(first, self.sizes, draws, strict=True)]
        yield from rng.permutation(np.concatenate(order)).tolist()


def _walk(rng: np.random.Generator, size: int, draws: int) -> np.ndarray:
    """`draws` positions below `size`, all of them once before any comes again."""
    rounds = -(-draws // size) if size else 0
    return np.concatenate([rng.permutation(size) for _ in range(rounds)] or [np.empty(0, np.int64)])[:draws]
