"""In which order training sees the examples of many tasks, and how often each task comes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

from mhr.data.example import Example, TaskCollection
from mhr.errors import ConfigError, DataError, nearest
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

    def __iter__(self) -> Iterator[Example]:
        return iter(self._examples)


class TaskSampler(Sampler[int]):
    """Indices into an ExampleDataset, epoch by epoch.

    Task t, of n_t examples, is drawn with probability p_t:

        proportional  p_t ~ n_t          uniform  p_t ~ 1          temperature  p_t ~ n_t ^ (1 / temperature)

    with n_t replaced by min(n_t, max_per_task) where that is given (examples-proportional mixing with a limit, Raffel
    et al. 2020, arXiv 1910.10683), and times weights[t], one a task, where those are. An epoch has sum_t min(n_t, max_per_task) draws, p_t of them from task t up to
    rounding, and takes no example of a task again before all others of it were taken: proportional without a limit is
    a plain shuffle where no task has a weight.

    The order depends on the seed and the epoch alone. So every rank draws the same, and skipping the batches of an
    epoch that are done resumes exactly; `set_epoch` is called by the Trainer.

    Raises ConfigError for a mixing that is unknown, for a temperature, limit or weight that is not positive, and for more or
    fewer weights than tasks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        mixing: str = "proportional",
        *,
        temperature: float = 1.0,
        max_per_task: int | None = None,
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ):
        if not temperature > 0:
            raise ConfigError(f"sampler temperature is {temperature}, expected a number above 0")
        if max_per_task is not None and max_per_task < 1:
            raise ConfigError(f"max_per_task is {max_per_task}, expected at least 1")
        self.sizes = np.asarray(sizes, dtype=np.int64)
        capped = self.sizes if max_per_task is None else np.minimum(self.sizes, max_per_task)
        self.length = int(capped.sum())
        shares = np.asarray(mixings[mixing](capped.astype(np.float64), temperature), dtype=np.float64)
        if weights is not None:
            shares = shares * _checked(weights, len(self.sizes))
        self.probabilities = shares / shares.sum()
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


class WholeRun(Sampler[int]):
    """The epochs of a sampler one after the other, as one epoch of `length` draws: every batch of a run is a full one.

    With `grouped`, examples of like length stand together (`LengthGroups`).
    """

    def __init__(self, sampler: TaskSampler, length: int, grouped: LengthGroups | None = None):
        self.sampler = sampler
        self.length = length
        self.grouped = grouped

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        draws = itertools.islice(self._epochs(), self.length)
        return draws if self.grouped is None else self.grouped(draws)

    def _epochs(self) -> Iterator[int]:
        for epoch in itertools.count():
            self.sampler.set_epoch(epoch)
            yield from self.sampler


class LengthGroups:
    """Reorders a run's draws so that those which share a batch are about equally long, and little of it is padding.

    lengths   of every example, in any unit
    batch     draws that are padded together or stand side by side: examples of a forward pass times processes
    seed      of the order of the batches

    Windows of 50 batches are sorted by length, cut into batches, and these shuffled, so that long and short batches take
    turns. An example that a window holds more than once, as it does where a task is small, goes into as many batches. A window holds the draws that it held, so each task is drawn as often in it. The order depends on the draws and the
    seed alone, each window on its own draws and its number: skipping what is done resumes exactly. Within a batch, and so
    within the tasks of a step, examples are no longer independent of one another in length.
    """

    WINDOW = 50

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch: int, seed: int = 0):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch = batch
        self.seed = seed

    def __call__(self, draws: Iterator[int]) -> Iterator[int]:
        for number in itertools.count():
            window = np.fromiter(itertools.islice(draws, self.WINDOW * self.batch), dtype=np.int64)
            if not len(window):
                return
            # Draws of one example side by side, examples of one length in an order that is drawn.
            held, which = np.unique(window, return_inverse=True)
            ties = np.random.default_rng([self.seed, number, 1]).permutation(len(held))
            ordered = window[np.lexsort((ties[which], self.lengths[window]))]
            batches = list(_of_different(ordered.tolist(), self.batch))
            # A last batch that is not full stays last: in another place it would shift the borders of those behind it.
            full = batches if len(batches[-1]) == self.batch else batches[:-1]
            rng = np.random.default_rng([self.seed, number])
            for i in [*rng.permutation(len(full)), *range(len(full), len(batches))]:
                yield from batches[i]


def _of_different(draws: list[int], size: int) -> Iterator[list[int]]:
    """Batches of draws in their order. Where an example comes k times, its draws are dealt to k batches with what stands beside them."""
    runs: list[list[int]] = []
    for start in range(0, len(draws), size):
        if runs and _most(runs[-1]) > len(runs[-1]) // size:
            runs[-1] += draws[start : start + size]
        else:
            runs.append(draws[start : start + size])
    while len(runs) > 1 and _most(runs[-1]) > len(runs[-1]) // size:
        runs[-2:] = [runs[-2] + runs[-1]]
    for run in runs:
        whole = len(run) // size  # a last batch that is not full takes what is left
        yield from (run[first : whole * size : whole] for first in range(whole))
        if len(run) % size:
            yield run[whole * size :]


def _most(draws: list[int]) -> int:
    """How often the most frequent of them occurs."""
    return max(Counter(draws).values())


def weights_of(
    weights: Mapping[str, float], tasks: Sequence[str], left_out: Mapping[str, str] | None = None
) -> list[float] | None:
    """The weight of each of `tasks`, 1 where none is given; None where no task has any.

    left_out  name -> why a task of the collection is not among `tasks`

    Raises ConfigError for the weight of a task that is not among them.
    """
    known = set(tasks)
    for name in weights:
        if name not in known:
            why = (left_out or {}).get(name)
            raise ConfigError(
                f"data.weights names {name!r}, which is left out of training: {why}; leave its weight out"
                if why
                else f"data.weights names {name!r}, which is no training task: {nearest(name, tasks)}"
            )
    return [weights.get(name, 1.0) for name in tasks] if weights else None


def _checked(weights: Sequence[float], tasks: int) -> np.ndarray:
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (tasks,) or not (np.isfinite(found) & (found > 0)).all():
        raise ConfigError(f"weights is {list(weights)}, expected a number above 0 for each of {tasks} tasks")
    return found


def _walk(rng: np.random.Generator, size: int, draws: int) -> np.ndarray:
    """`draws` positions below `size`, all of them once before any comes again."""
    rounds = -(-draws // size) if size else 0
    return np.concatenate([rng.permutation(size) for _ in range(rounds)] or [np.empty(0, np.int64)])[:draws]
