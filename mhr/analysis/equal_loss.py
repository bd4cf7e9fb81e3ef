"""Gradient alignment of several runs at the same loss, before they stand still.

Where a run no longer learns, the gradients of its tasks sum to about 0, and their mean cosine is about -1 / (T - 1), whatever the
method: such points are left out. And a method that is ahead in loss is further on the way there, so that methods are compared
at equal loss and not at equal steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

LossAndCosine = tuple[float, float]
"""(mean loss of the tasks, mean cosine of their gradients) of a checkpoint."""

STANDING = 0.1
"""A run stands still from where it has this share of its fall still before it."""


def still_learning(points: Sequence[LossAndCosine]) -> list[LossAndCosine]:
    """The points, in the order of training, before the run stands still: those with a loss of more than `last + STANDING (highest -
    last)`, last the lowest loss that it reaches. The cosines have no part in the choice. None of fewer than two points."""
    if len(points) < 2:
        return []
    highest, lowest = max(loss for loss, _ in points), min(loss for loss, _ in points)
    return [point for point in points if point[0] > lowest + STANDING * (highest - lowest)]


def at_loss(points: Sequence[LossAndCosine], loss: float) -> float | None:
    """The cosine where the run first passes a loss, between two checkpoints by a straight line; None where it does not."""
    for (a, x), (b, y) in pairwise(points):
        if min(a, b) <= loss <= max(a, b):
            return x if a == b else x + (loss - a) / (b - a) * (y - x)
    return None


def at_equal_loss(runs: Sequence[Sequence[LossAndCosine]], levels: int = 5) -> list[tuple[float, list[float]]]:
    """The cosines of all runs at losses that all of them pass while they learn: `levels` of these, evenly spaced between the
    highest and the lowest, the highest first. Empty where there is no such loss."""
    while_learning = [still_learning(points) for points in runs]
    if not all(while_learning):
        return []
    high = min(max(loss for loss, _ in points) for points in while_learning)
    low = max(min(loss for loss, _ in points) for points in while_learning)
    if low >= high:
        return []
    found = []
    for i in range(levels):
        loss = high + (low - high) * i / (levels - 1) if levels > 1 else (high + low) / 2
        cosines = [at_loss(points, loss) for points in while_learning]
        found.append((loss, [c for c in cosines if c is not None]))
    return [(loss, cosines) for loss, cosines in found if len(cosines) == len(runs)]
