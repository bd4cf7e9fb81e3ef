"""TIES (arXiv 2306.01708): trim what is small, elect a sign, average what agrees with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mhr.adapters.plain import PlainAdapter
from mhr.merging.combination import Combination, combines


@combines("ties")
def combine_ties(sources: Sequence[PlainAdapter], weights: list[float], *, density: float) -> Combination:
    """`x = sum_{k in S} w_k t_k / sum_{k in S} w_k`, elementwise.

    t_k is x_k with only its share `density` of largest magnitudes left, tensor by tensor; S holds the inputs whose t_k is not
    0 and has the sign of `sum_k w_k t_k` (plus where that is 0). Nothing agrees: 0.
    """
    if len(sources) == 1 and density == 1:
        return Combination(weights)  # itself, also where its product would have to be factored again

    def merge(name: str, tensors: Sequence[Tensor]) -> Tensor:
        limits: list[float] = []
        total: Tensor | None = None
        for tensor, weight in zip(tensors, weights, strict=True):
            limits.append(_limit(tensor, density))
            share = weight * _trim(tensor, limits[-1])
            total = share if total is None else total.add_(share)
        assert total is not None
        plus = total >= 0
        top, bottom = torch.zeros_like(total), torch.zeros_like(total)
        for tensor, weight, limit in zip(tensors, weights, limits, strict=True):
            trimmed = _trim(tensor, limit)
            trimmed = torch.where((trimmed > 0) == plus, trimmed, 0.0)
            top.add_(trimmed, alpha=weight)
            bottom.add_(trimmed != 0, alpha=weight)
        return torch.where(bottom > 0, top / bottom, 0.0)

    return Combination(weights, tensors=merge, notes={"density": density})


def _limit(tensor: Tensor, density: float) -> float:
    """The smallest magnitude that is kept."""
    n = tensor.numel()
    kept = max(1, int(density * n))
    return float(tensor.abs().flatten().kthvalue(n - kept + 1).values)


def _trim(tensor: Tensor, limit: float) -> Tensor:
    return torch.where(tensor.abs() >= limit, tensor, 0.0)
