"""Weights as a user gives them, brought to a sum of 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mhr.errors import MergeError, nearest


def shares(values: Sequence[float]) -> list[float]:
    """The values divided by their sum. Raises MergeError where one is below 0 or not finite, or all are 0."""
    if not all(math.isfinite(v) and v >= 0 for v in values) or not sum(values) > 0:
        raise MergeError(f"weights are {list(values)}: expected finite numbers of at least 0, with one above 0")
    return [v / math.fsum(values) for v in values]


def input_shares(weights: Mapping[str, float] | Sequence[float] | None, names: Sequence[Sequence[str]]) -> list[float]:
    """A share for each input: equal ones for None, one after the other, or by name.

    names: of each input, all that it may be called. Raises MergeError for weights that do not fit the inputs in number or
    name.
    """
    if weights is None:
        return shares([1.0] * len(names))
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise MergeError(f"got {len(weights)} weights for {len(names)} inputs: give one per input, in their order")
        return shares(weights)
    found = []
    for known in names:
        given = [name for name in known if name in weights]
        if not given:
            raise MergeError(f"no weight is given for {known[0]}: name every input, or give one weight per input")
        found.append(weights[given[0]])
    for name in weights:
        if not any(name in known for known in names):
            raise MergeError(f"weight for {name!r}, which is no input: {nearest(name, [n for k in names for n in k])}")
    return shares(found)
