"""Uniform soup (arXiv 2203.05482): the average of checkpoints of one model, number by number."""

from __future__ import annotations

from collections.abc import Sequence

from mhr.merging.combination import Combination, register
from mhr.merging.source import Source


@register("soup-uniform", "factor", "delta")
def combine_soup_uniform(sources: Sequence[Source], weights: list[float]) -> Combination:
    """`(x_1 + ... + x_K) / K`. Banks of one layout are averaged skill by skill, with their routing, and stay a bank."""
    return Combination(weights)
