"""MerA (arXiv 2308.15982): bring the hidden units of the adapters into one order by optimal transport, then average."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mhr.adapters.layer import ADAPTER_LAYERS, AdapterLayer, BottleneckFactors, LoraFactors
from mhr.adapters.plain import PlainAdapter
from mhr.errors import MergeError
from mhr.merging.combination import Combination, combines


@combines("mera")
def combine_mera(sources: Sequence[PlainAdapter], weights: list[float]) -> Combination:
    """`A = sum_k w_k A_k P_k`, `B = sum_k w_k P_k^T B_k`, with the P_k that bring each input nearest to the heaviest one.

    A hidden unit is a rank of a LoRA or a unit of a bottleneck: a column of A, a row of B and, in a bottleneck, a bias between
    them. P_k permutes them (in a LoRA, it may also turn the sign of both sides), so each input computes what it did. It
    minimises `||A_1 - A_k P||^2 + ||B_1 - P^T B_k||^2` (+ the biases'), an optimal transport problem with equal marginals,
    which `assign` solves exactly. Without this, units that do the same in different places average away.

    Raises MergeError for IA3 and FiLM, which have no hidden units.
    """
    kind = ADAPTER_LAYERS[sources[0].kind]
    if not kind.ranked:
        raise MergeError(f"mera aligns hidden units, and {kind.title} has none: use uniform or weighted")
    reference = max(range(len(weights)), key=weights.__getitem__)

    def align(layers: list[AdapterLayer]) -> list[AdapterLayer]:
        return [layer if i == reference else aligned(layer, layers[reference]) for i, layer in enumerate(layers)]

    return Combination(weights, align=align, notes={"aligned to": sources[reference].name})


def aligned(layer: AdapterLayer, to: AdapterLayer) -> AdapterLayer:
    """The layer with its hidden units in the order, and in a LoRA with the signs, that bring them nearest to those of `to`."""
    if isinstance(layer, BottleneckFactors):
        order = torch.tensor(assign((_units(to).T @ _units(layer)).numpy()))
        moved = {"a": layer.a[:, order], "b": layer.b[order], "bias_a": layer.bias_a[order]}
        return layer.with_tensors(moved)
    assert isinstance(layer, LoraFactors)
    gains = _units(to.scaled(1.0)).T @ _units(layer.scaled(1.0))
    order = torch.tensor(assign(gains.abs().numpy()))
    signs = torch.where(gains[torch.arange(len(order)), order] < 0, -1.0, 1.0).to(layer.a.dtype)
    return LoraFactors(layer.a[:, order] * signs, layer.b[order] * signs[:, None], layer.alpha)


def _units(layer: AdapterLayer) -> Tensor:
    """All that belongs to a hidden unit in a column of its own [I + O (+ 1), R], in float64."""
    assert isinstance(layer, LoraFactors | BottleneckFactors)
    parts = [layer.a, layer.b.T]
    if isinstance(layer, BottleneckFactors):
        parts.append(layer.bias_a[None])
    return torch.cat([part.double() for part in parts])


def assign(gains: npt.NDArray[np.float64]) -> list[int]:
    """The permutation p that maximises `sum_i gains[i, p[i]]`, exactly; gains [n, n].

    With equal weights on both sides an optimal transport plan is a permutation, so nothing finer exists. Shortest augmenting
    paths with potentials (Hungarian method), n^3 steps of which numpy does n at a time.
    """
    n = len(gains)
    costs = -np.asarray(gains, dtype=np.float64)
    rows, columns = np.zeros(n + 1), np.zeros(n + 1)  # potentials; number n stands for "none yet"
    owner = np.full(n + 1, n)  # column -> row
    for row in range(n):
        owner[n], column = row, n
        best, before = np.full(n + 1, np.inf), np.full(n + 1, n)
        done = np.zeros(n + 1, dtype=bool)
        while owner[column] != n:
            done[column] = True
            current = owner[column]
            open_ = ~done[:n]
            reduced = costs[current] - rows[current] - columns[:n]
            nearer = open_ & (reduced < best[:n])
            best[:n][nearer], before[:n][nearer] = reduced[nearer], column
            following = int(np.where(open_, best[:n], np.inf).argmin())
            step = best[following]
            rows[owner[done]] += step
            columns[done] -= step
            best[~done] -= step
            column = following
        while column != n:
            owner[column] = owner[before[column]]
            column = before[column]
    permutation = [0] * n
    for column, row in enumerate(owner[:n]):
        permutation[row] = column
    return permutation
