"""Uniform merge: MHR-mu and Poly-mu (arXiv 2211.03831), the average of all skills, or of several adapters, as one."""

from __future__ import annotations

from collections.abc import Sequence

from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.collapse import collapse
from mhr.adapters.plain import PlainAdapter
from mhr.merging.combination import Combination, merge_methods, register


@merge_methods.register("uniform")
def merge_uniform(checkpoint: AdapterCheckpoint) -> PlainAdapter:
    """`A = mean_s A[s]`, `B = mean_s B[s]`, every head by itself: `collapse` with w = 1/S, whatever was learned.

    For a bank with one adapter per task (private) it is the mean over tasks; for a shared one, the adapter itself.
    """
    return collapse(checkpoint, None)


@register("uniform", "factor", "delta")
def combine_uniform(sources: Sequence[PlainAdapter], weights: list[float]) -> Combination:
    """`(x_1 + ... + x_K) / K` over several adapters."""
    return Combination(weights)
