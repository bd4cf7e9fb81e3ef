"""DARE (arXiv 2311.03099): drop elements at random, scale up the rest, average."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mhr.adapters.plain import PlainAdapter
from mhr.merging.combination import Combination, combines


@combines("dare")
def combine_dare(sources: Sequence[PlainAdapter], weights: list[float], *, drop: float, seed: int) -> Combination:
    """`x = sum_k w_k m_k x_k / (1 - drop)`, m_k 0 with probability `drop` and otherwise 1, elementwise.

    The draw depends on the seed, on what the input holds and on the layer, not on the order of inputs. In factor space the
    factors are thinned out each by itself.
    """
    if drop == 0:
        return Combination(weights)

    def merge(name: str, tensors: Sequence[Tensor]) -> Tensor:
        total: Tensor | None = None
        for source, tensor, weight in zip(sources, tensors, weights, strict=True):
            kept = keep(tensor.shape, drop, f"{seed}/{source.digest}/{name}")
            share = torch.where(kept, tensor, 0.0) * (weight / (1 - drop))
            total = share if total is None else total.add_(share)
        assert total is not None
        return total

    return Combination(weights, tensors=merge, notes={"drop": drop, "seed": seed})


def keep(shape: torch.Size, drop: float, key: str) -> Tensor:
    """Which elements are kept, each with probability `1 - drop`: the same for the same key, on every machine."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= drop
