"""MerA (arXiv 2308.15982): bring the hidden units of the adapters into one order by optimal transport, then average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor, nn

from mhr.adapters.layer import ADAPTER_LAYERS, AdapterLayer, BottleneckFactors, LoraFactors
from mhr.adapters.plain import PlainAdapter, plain_checkpoint
from mhr.data import Example
from mhr.errors import MergeError
from mhr.merging.combination import Combination, combines
from mhr.merging.judge import Judge
from mhr.merging.report import Gram


@combines("mera")
def combine_mera(sources: Sequence[PlainAdapter], weights: list[float], *, tracks: int | None) -> Combination:
    """`A = sum_k w_k A_k P_k`, `B = sum_k w_k P_k^T B_k`, with the P_k that bring each input nearest to the heaviest one.

    A hidden unit is a rank of a LoRA or a unit of a bottleneck: a column of A, a row of B and, in a bottleneck, a bias between
    them. P_k permutes them (in a LoRA, it may also turn the sign of both sides), so each input computes what it did. It
    minimises `||A_1 - A_k P||^2 + ||B_1 - P^T B_k||^2` (+ the biases'), an optimal transport problem with equal marginals,
    which `assign` solves exactly. Without this, units that do the same in different places average away.

    With `tracks`, inputs are grouped by the cosines of their updates first (the paper's same-track setting; tasks of one bank that are
    routed alike come into one), each group is merged so, and the groups are brought nearest to the heaviest one and merged.

    Raises MergeError for IA3 and FiLM, which have no hidden units.
    """
    reference = _reference(sources, weights)
    groups = [list(range(len(sources)))] if tracks is None else tracks_of(sources, tracks)
    groups.sort(key=lambda group: reference not in group)

    def align(name: str, layers: list[AdapterLayer]) -> list[AdapterLayer]:
        return _by_tracks(layers, groups, weights)

    notes: dict[str, Any] = {"aligned to": sources[reference].name}
    if tracks is not None:
        notes["tracks"] = [[sources[i].name for i in group] for group in groups]
    return Combination(weights, align=align, notes=notes)


def tracks_of(sources: Sequence[PlainAdapter], n: int) -> list[list[int]]:
    """Inputs in n groups by the cosines of their updates over all layers: average linkage, cut where n are left.

    Raises MergeError for more groups than inputs.
    """
    if n > len(sources):
        raise MergeError(f"tracks is {n}, but there are {len(sources)} different inputs: choose no more than these")
    if len(sources) == 1:
        return [[0]]
    gram = Gram(len(sources))
    for name in sources[0].shapes:
        gram.add([source.layers[name] for source in sources])
    distances = (1 - np.array(gram.cosine)).clip(min=0)
    tree = linkage(distances[np.triu_indices(len(sources), 1)], "average")
    labels = cut_tree(tree, n_clusters=n)[:, 0].tolist()
    return [[i for i, label in enumerate(labels) if label == one] for one in dict.fromkeys(labels)]


def _by_tracks(
    layers: Sequence[AdapterLayer], groups: Sequence[Sequence[int]], weights: Sequence[float]
) -> list[AdapterLayer]:
    """Inputs aligned to the heaviest of their group, and each group as a whole to the first."""
    found, first = list(layers), None
    for group in groups:
        heaviest = max(group, key=weights.__getitem__)
        for i in group:
            if i != heaviest:
                found[i] = aligned(layers[i], layers[heaviest])
        share = math.fsum(weights[i] for i in group)
        if share == 0:  # it is left out
            continue
        middle = sum((weights[i] / share * _units(found[i].scaled(1.0)) for i in group), torch.zeros(()))
        if first is None:
            first = middle
            continue
        gains = first.T @ middle
        for i in group:
            found[i] = reordered(found[i], gains)
    return found


@combines("mera-activations")
def combine_mera_activations(
    sources: Sequence[PlainAdapter], weights: list[float], *, judge: Judge, examples: int
) -> Combination:
    """`combine_mera` with the P_k that bring the activations of hidden units nearest to those of the heaviest input, `||H_1 - H_k P||^2`.

    H_k [N, R] are `x A_k` of a LoRA (at one scaling), `gelu(x A_k + a_k)` of a bottleneck, for the N tokens of `examples` examples of each
    input's tasks, where the base model with the heaviest input computes x: what units do, not what they are made of. Signs may turn in a
    LoRA.

    Raises MergeError for IA3 and FiLM, DataError where an input has no examples.
    """
    reference = _reference(sources, weights)
    if len(sources) == 1:
        return Combination(weights)
    shown = {(e.task, e.id, e.input): e for source in sources for e in judge.examples_of(source, examples)}
    gains = activation_gains(judge, sources, reference, list(shown.values()))

    def align(name: str, layers: list[AdapterLayer]) -> list[AdapterLayer]:
        if name not in gains:  # no token came to it
            return [aligned(layer, layers[reference]) for layer in layers]
        return [layer if i == reference else reordered(layer, gains[name][i]) for i, layer in enumerate(layers)]

    notes = {"aligned to": sources[reference].name, "examples": len(shown)}
    return Combination(weights, align=align, notes=notes)


def _reference(sources: Sequence[PlainAdapter], weights: Sequence[float]) -> int:
    """The heaviest input. Raises MergeError for kinds of adapters without hidden units."""
    kind = ADAPTER_LAYERS[sources[0].kind]
    if not kind.aligned:
        raise MergeError(
            f"mera aligns hidden units of LoRAs and bottlenecks, of which {kind.title} is none: use uniform or weighted"
        )
    return max(range(len(weights)), key=weights.__getitem__)


def activation_gains(
    judge: Judge, sources: Sequence[PlainAdapter], reference: int, examples: Sequence[Example]
) -> dict[str, Tensor]:
    """Of each layer, for every input k, the inner products over tokens of the activations of the reference's units with those of its
    own, `H_1^T H_k` [K, R, R], in float64. The base model wears the reference meanwhile; all inputs are in memory."""
    every = {name: [source.layers[name].scaled(1.0) for source in sources] for name in sources[0].shapes}
    found: dict[str, Tensor] = {}

    def watch(name: str, x: Tensor) -> None:
        hidden = [_activations(layer, x.reshape(-1, x.shape[-1]).double().cpu()) for layer in every[name]]
        gains = torch.stack([hidden[reference].T @ h for h in hidden])
        found[name] = found[name] + gains if name in found else gains

    with judge.wearing(plain_checkpoint(sources[reference].read())) as loaded, torch.no_grad():
        assert loaded.bank is not None
        # A model that is called for the first time may be tried on tokens of no meaning, which are not to count.
        judge.loss(loaded, examples[0])
        handles = []
        for name, layer in loaded.bank.layers.items():
            if sources[0].kind == "lora":
                handles.append(layer.register_forward_pre_hook(lambda _, args, name=name: watch(name, args[0])))
            else:  # it stands behind its layer
                handles.append(layer.base.register_forward_hook(lambda _, args, out, name=name: watch(name, out)))
        try:
            for example in examples:
                judge.loss(loaded, example)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _activations(layer: AdapterLayer, x: Tensor) -> Tensor:
    """Of the hidden units [N, R] for inputs [N, I], in float64."""
    assert isinstance(layer, LoraFactors | BottleneckFactors)
    hidden = x @ layer.a.double()
    return hidden if isinstance(layer, LoraFactors) else nn.functional.gelu(hidden + layer.bias_a.double())


def aligned(layer: AdapterLayer, to: AdapterLayer) -> AdapterLayer:
    """The layer with its hidden units in the order, and in a LoRA with the signs, that bring them nearest to those of `to`."""
    return reordered(layer, _units(to.scaled(1.0)).T @ _units(layer.scaled(1.0)))


def reordered(layer: AdapterLayer, gains: Tensor) -> AdapterLayer:
    """The layer with its hidden units in the order, and in a LoRA with the signs, of the highest sum of gains [R, R]: what each unit of
    the reference has in common with each of the layer's own."""
    if isinstance(layer, BottleneckFactors):
        order = torch.tensor(assign(gains.numpy()))
        moved = {"a": layer.a[:, order], "b": layer.b[order], "bias_a": layer.bias_a[order]}
        return layer.with_tensors(moved)
    assert isinstance(layer, LoraFactors)
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
