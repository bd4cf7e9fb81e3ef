"""Soups (arXiv 2203.05482): averages of checkpoints of one model, of all, or greedily of those that make it better."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mhr.adapters.plain import PlainAdapter
from mhr.merging.combination import Combination, combines


@combines("soup-uniform")
def combine_soup_uniform(sources: Sequence[PlainAdapter], weights: list[float]) -> Combination:
    """`(x_1 + ... + x_K) / K`. Banks of one layout are averaged skill by skill, with their routing, and stay a bank."""
    return Combination(weights)


@combines("soup-greedy")
def combine_soup_greedy(
    sources: Sequence[PlainAdapter], weights: list[float], *, score: Callable[[list[float]], float]
) -> Combination:
    """`mean of the chosen x_k`: inputs by their own score, the best first; each stays if the average with it scores higher.

    score: of the average with the given weights, on the dev examples. Equal scores are ordered by what the inputs hold, so
    that the order in which they were named changes nothing. The paper also keeps an input that changes nothing; here the
    average has to improve.
    """
    n = len(sources)
    alone = [score(_equal([i], n)) for i in range(n)]
    order = sorted(range(n), key=lambda i: (-alone[i], sources[i].digest))
    chosen, best = [order[0]], alone[order[0]]
    steps = [{"input": sources[order[0]].name, "alone": best, "with it": best, "kept": True}]
    for i in order[1:]:
        found = score(_equal([*chosen, i], n))
        steps.append({"input": sources[i].name, "alone": alone[i], "with it": found, "kept": found > best})
        if found > best:
            chosen, best = [*chosen, i], found
    return Combination(_equal(chosen, n), notes={"steps": steps})


def _equal(chosen: Sequence[int], n: int) -> list[float]:
    return [1 / len(chosen) if i in chosen else 0.0 for i in range(n)]
