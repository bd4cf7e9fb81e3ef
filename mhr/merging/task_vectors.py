"""Merges of updates as sparsifier x consensus: each input is thinned out, then they are summed, averaged, or agree on a sign.

A row of MERGE_METHODS names the two; `ties`, `dare`, `della`, `breadcrumbs` and their kin are such rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mhr.adapters.plain import PlainAdapter
from mhr.merging.combination import Combination, combines
from mhr.merging.methods import MERGE_METHODS, MergeMethod
from mhr.merging.sparsifiers import SPARSIFIERS, Thinner


def combine_task_vectors(
    row: MergeMethod, sources: Sequence[PlainAdapter], weights: list[float], settings: dict[str, Any]
) -> Combination:
    """What a row with a consensus makes of sources: with t_k = thinned x_k and lambda = `scale`,

        sum   lambda sum_k w_k t_k                 task arithmetic (arXiv 2212.04089): w_k 1 each, or as they are given
        mean  sum_k w_k t_k                        w_k adding up to 1
        sign  lambda sum_{k in S} w_k t_k / sum_{k in S} w_k,  S = {k: t_k != 0 and sign(t_k) = sign(sum_j w_j t_j)}  (TIES, arXiv 2306.01708)

    elementwise; where sum_j w_j t_j is 0, plus is its sign, and where S is empty the result is 0. Nothing thins out and no sign is
    elected: then it is a weighted sum, and no product of factors is formed.
    """
    scale = settings.get("scale", 1.0)
    elects = row.consensus == "sign" and len(sources) > 1
    sparsifier = SPARSIFIERS[row.sparsifier] if row.sparsifier is not None else None
    if sparsifier is None or (not elects and sparsifier.neutral(settings)):
        return _sum(weights, scale)
    kept = sparsifier.kept(settings)

    def merge(name: str, tensors: Sequence[Tensor]) -> Tensor:
        thinners: list[Thinner] = []
        total: Tensor | None = None
        for source, tensor, weight in zip(sources, tensors, weights, strict=True):
            thinners.append(sparsifier.thinner(tensor, f"{source.digest}/{name}", settings))
            share = thinners[-1](tensor).mul_(weight / kept)
            total = share if total is None else total.add_(share)
        assert total is not None
        if elects:
            total = _agreed(tensors, thinners, weights, kept, total >= 0)
        return total if scale == 1 else total.mul_(scale)

    notes = {name: value for name, value in settings.items() if name != "scale" or value != 1}
    return dataclasses.replace(_sum(weights, scale), tensors=merge, notes=notes)


def _sum(weights: list[float], scale: float) -> Combination:
    """`scale sum_k w_k x_k`, and of modules that are stored whole an average with weights in that ratio."""
    if math.isclose(math.fsum(weights), 1, rel_tol=1e-12) and scale == 1:
        return Combination(weights)
    sizes = [abs(w) for w in weights]
    return Combination([scale * w for w in weights], shares=[size / math.fsum(sizes) for size in sizes])


def _agreed(
    tensors: Sequence[Tensor], thinners: Sequence[Thinner], weights: Sequence[float], kept: float, plus: Tensor
) -> Tensor:
    """The weighted mean of those thinned elements that have the sign that was elected."""
    top, bottom = torch.zeros(plus.shape, dtype=tensors[0].dtype), torch.zeros(plus.shape, dtype=tensors[0].dtype)
    for tensor, thin, weight in zip(tensors, thinners, weights, strict=True):
        thinned = thin(tensor)
        thinned = torch.where((thinned > 0) == plus, thinned, 0.0)
        top.add_(thinned, alpha=weight / kept)
        bottom.add_(thinned != 0, alpha=weight)
    return torch.where(bottom > 0, top / bottom, 0.0)


def _register(row: MergeMethod) -> None:
    @combines(row.name)
    def combine(sources: Sequence[PlainAdapter], weights: list[float], **settings: Any) -> Combination:
        return combine_task_vectors(row, sources, weights, settings)


for _row in MERGE_METHODS.values():
    if _row.consensus is not None:
        _register(_row)
