"""What a metric is: a function of all answers to a task and of what would have been right, under a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mhr.data.example import Example
from mhr.registry import Registry

CHOICE, NUMBER, TEXT = "choice", "number", "text"
"""What a metric judges: a choice that was picked, a number, or a text that was generated."""


class Undefined(ValueError):
    """A metric that has no value for these answers and targets, such as a correlation with a constant; the message says why."""


@dataclass(slots=True)
class Judged:
    """The answers to one task, n of them.

    answers  [n] texts, also where they are labels or numbers
    targets  [n] the acceptable answers to each, in their order
    choices  the labels of the task in its own order, empty without a fixed set
    remarks  what a reader of the value has to know, a line each; a metric appends to it
    """

    answers: Sequence[str]
    targets: Sequence[Sequence[str]]
    choices: tuple[str, ...] = ()
    remarks: list[str] = field(default_factory=list)


Compute = Callable[[Judged], float]
Misfit = Callable[[Sequence[Example]], str | None]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    judges   CHOICE, NUMBER or TEXT
    compute  its value; raises Undefined where there is none
    misfit   what examples, at least one, lack that it needs, as in "has 3 labels"; None where it fits them
    part     it looks only at the examples of this part of a split ("matched")
    scored   it is a fraction or a correlation, so that it may be a task's score and be averaged with others
    package  the distribution that computes it, whose version is kept with the value; empty: our own code
    """

    name: str
    judges: str
    compute: Compute
    misfit: Misfit | None = None
    part: str = ""
    scored: bool = True
    package: str = ""


metrics: Registry[Metric] = Registry("metric")


def measures(
    name: str, judges: str, *, misfit: Misfit | None = None, part: str = "", scored: bool = True, package: str = ""
) -> Callable[[Compute], Compute]:
    """Register a function as the metric `name`, see `Metric`. The name stands in `mhr.runs.scoring.METRICS` as well."""

    def decorate(compute: Compute) -> Compute:
        metrics.register(name)(Metric(name, judges, compute, misfit, part, scored, package))
        return compute

    return decorate
