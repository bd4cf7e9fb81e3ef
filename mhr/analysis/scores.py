"""Scores of several contestants on several tasks, side by side: where they meet, who leads, and by how much."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mhr.analysis.compare import Paired, compare
from mhr.analysis.seed_tests import holm
from mhr.errors import DataError

Seed = str | None
"""What was drawn for a score: the seed as a string; None where nothing is drawn."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number: a contestant on a task, from 0 to 1.

    metric      accuracy, exact_match ...
    trained_on  the task that was adapted to, where it is not the task that is judged
    majority    what always giving the most frequent answer would score, where that is known
    n           examples that were judged, where that is known
    measures    every metric that the task was judged by, where more than the value are known
    """

    contestant: str
    task: str
    value: float
    metric: str
    seed: Seed = None
    category: str = ""
    trained_on: str | None = None
    majority: float | None = None
    n: int | None = None
    measures: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Standing:
    """A contestant over the tasks that all were judged on.

    mean, spread   mean over tasks, taken seed by seed; its standard deviation over seeds, None for a single one
    by_category    the mean over categories of the mean over their tasks
    best_on        tasks on which no other scores higher
    behind         how far it is behind the first, None for the first itself
    p              of that, adjusted by Holm over all pairs of contestants; None for the first, and where no two seeds are known
    """

    contestant: str
    mean: float
    spread: float | None
    by_category: float
    seeds: int
    best_on: int
    behind: Paired | None
    p: float | None


@dataclass
class Scores:
    """A table of scores. `add` refuses a second score for the same contestant, task and seed with DataError."""

    rows: dict[tuple[str, str, Seed], Score] = field(default_factory=dict)
    transfer: list[Score] = field(default_factory=list)

    def add(self, scores: Iterable[Score]) -> None:
        for score in scores:
            if score.trained_on not in (None, score.task):
                self.transfer.append(score)
                continue
            key = (score.contestant, score.task, score.seed)
            if key in self.rows:
                seed = "" if score.seed is None else f", seed {score.seed}"
                raise DataError(
                    f"two scores for {score.contestant} on task {score.task!r}{seed}: give each evaluation once, or evaluate with one "
                    "setting only"
                )
            self.rows[key] = score

    @property
    def contestants(self) -> list[str]:
        return list(dict.fromkeys(score.contestant for score in self.rows.values()))

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(score.task for score in self.rows.values()))

    @property
    def categories(self) -> dict[str, str]:
        """Task -> its category, "" where none is known."""
        categories: dict[str, str] = {}
        for score in self.rows.values():
            categories[score.task] = categories.get(score.task) or score.category
        return categories

    @property
    def majority(self) -> dict[str, float]:
        """Task -> what always giving the most frequent answer would score, where that is known."""
        return {score.task: score.majority for score in self.rows.values() if score.majority is not None}

    def of(self, contestant: str, task: str) -> dict[Seed, float]:
        """Seed -> value; empty where the contestant was not judged on the task."""
        return {s.seed: s.value for s in self.rows.values() if s.contestant == contestant and s.task == task}

    def measured(self, contestant: str, task: str, metric: str) -> list[float]:
        """The values of one metric, a seed each."""
        own = [s for s in self.rows.values() if s.contestant == contestant and s.task == task]
        return [s.measures[metric] for s in own if metric in s.measures]

    def metric(self, task: str) -> str | None:
        """The metric that all scores of a task share; None where they differ."""
        metrics = {score.metric for score in self.rows.values() if score.task == task}
        return metrics.pop() if len(metrics) == 1 else None

    @property
    def uneven(self) -> list[str]:
        """The tasks on which contestants were scored on different numbers of examples."""
        counts: dict[str, set[int]] = {}
        for score in self.rows.values():
            if score.n is not None:
                counts.setdefault(score.task, set()).add(score.n)
        return [task for task, numbers in counts.items() if len(numbers) > 1]

    def meeting(self) -> list[str]:
        """The tasks that every contestant was judged on, by the same metric."""
        return [t for t in self.tasks if self.metric(t) and all(self.of(c, t) for c in self.contestants)]

    def mean(self, contestant: str, tasks: Sequence[str]) -> tuple[float, float | None, int]:
        """Mean over `tasks` taken seed by seed, its standard deviation over seeds, and the number of seeds.

        Where tasks were judged with different seeds, only the mean of their means is taken, without a spread.
        """
        by_task = [self.of(contestant, task) for task in tasks]
        if any(values.keys() != by_task[0].keys() for values in by_task):
            return statistics.mean(statistics.mean(values.values()) for values in by_task), None, 1
        by_seed = [statistics.mean(values[seed] for values in by_task) for seed in by_task[0]]
        spread = statistics.stdev(by_seed) if len(by_seed) > 1 else None
        return statistics.mean(by_seed), spread, len(by_seed)

    def paired(self, a: str, b: str, tasks: Sequence[str]) -> Paired | None:
        """`a - b`, paired over tasks and the seeds that both have. A score that no seed was drawn for stands beside every seed of the
        other; where no seed is common, each is averaged over its own."""
        first: dict[tuple[str, Seed], float] = {}
        second: dict[tuple[str, Seed], float] = {}
        for task in tasks:
            x, y = self.of(a, task), self.of(b, task)
            if x.keys() == {None}:
                x = dict.fromkeys(y, x[None])
            elif y.keys() == {None}:
                y = dict.fromkeys(x, y[None])
            elif not x.keys() & y.keys():
                x, y = {None: statistics.mean(x.values())}, {None: statistics.mean(y.values())}
            first |= {(task, seed): value for seed, value in x.items()}
            second |= {(task, seed): value for seed, value in y.items()}
        return compare(first, second)

    def standings(self, tasks: Sequence[str]) -> list[Standing]:
        """All contestants over `tasks`, the highest mean first."""
        if not tasks:
            return []
        means = {c: self.mean(c, tasks) for c in self.contestants}
        order = sorted(means, key=lambda c: -means[c][0])
        by_task = {task: {c: statistics.mean(self.of(c, task).values()) for c in order} for task in tasks}
        groups = self._groups(tasks)
        behind = {name: self.paired(name, order[0], tasks) for name in order[1:]}
        known = {name: found.p for name, found in behind.items() if found is not None and found.p is not None}
        # The first is known by its scores alone, so that it could have been any pair that differs this much.
        n_pairs = (len(known) + 1) * len(known) // 2
        adjusted = dict(zip(known, holm([*known.values(), *[1.0] * (n_pairs - len(known))]), strict=False))
        return [
            Standing(
                name,
                *means[name][:2],
                statistics.mean(self.mean(name, group)[0] for group in groups.values()),
                means[name][2],
                sum(values[name] >= max(values.values()) for values in by_task.values()),
                behind.get(name),
                adjusted.get(name),
            )
            for name in order
        ]

    def _groups(self, tasks: Sequence[str]) -> dict[str, list[str]]:
        """Category -> its tasks among `tasks`, by name."""
        categories, groups = self.categories, dict[str, list[str]]()
        for task in tasks:
            groups.setdefault(categories[task], []).append(task)
        return dict(sorted(groups.items()))

    @property
    def by_category(self) -> dict[str, list[str]]:
        """Category -> its tasks."""
        return self._groups(self.tasks)
