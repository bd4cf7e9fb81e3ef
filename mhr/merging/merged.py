"""The merge itself: one layer after the other is read from every input, merged, and handed on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from mhr.adapters.heads import is_output, joined_heads, stand_apart
from mhr.adapters.layer import AdapterLayer, LoraFactors, Shape
from mhr.adapters.plain import Lazy, PlainAdapter
from mhr.adapters.refactor import Loss, refactor_dense, refactor_sum
from mhr.errors import MergeError
from mhr.merging.combination import Combination, MergeTensors
from mhr.ops import weighted_average
from mhr.ops.checks import accumulator


class Merging:
    """Adapters and how they are combined; `adapter` is what they become. Nothing is merged before a layer is asked for.

    space "factor" merges the tensors of LoRAs as they are, scalings that differ taken up evenly by both factors; "delta" merges
    the weight updates `(alpha / R) A B` and factors the result again to `rank` (None: the largest rank of the inputs), or to the least rank of
    this `energy` up to it (None: all), see `refactor_sum`: then `shapes` have the highest that is possible.

    The adapter has the dropout, for training that goes on, that all inputs have; otherwise none.

    errors   layer -> what re-factoring lost, as far as layers were asked for; empty where none is needed
    watch    called with the inputs' layers, layer by layer
    """

    def __init__(
        self,
        sources: Sequence[PlainAdapter],
        combination: Combination,
        space: str,
        rank: int | None = None,
        watch: Callable[[list[AdapterLayer]], None] | None = None,
        energy: float | None = None,
    ):
        first = sources[0]
        self.sources, self.combination, self.space, self.rank, self.watch = sources, combination, space, rank, watch
        self.energy = energy
        # What has weight 0 is still checked, but it is kept out of the sums, where 0 * inf would do harm.
        self.used = [i for i, w in enumerate(combination.weights) if w != 0 or combination.tensors]
        self.errors: dict[str, Loss] = {}
        self.shapes = {layer: self._shape(layer) for layer in first.shapes}
        every = [source.heads for source in sources]
        self.heads = joined_heads(every)
        self.apart = self.heads.layer if self.heads is not None and stand_apart(every) else ""
        self.adapter = PlainAdapter(
            layers=Lazy(self.shapes, self._layer),
            base=next((s.base for s in sources if s.base.fingerprint), first.base),
            modules=Lazy(first.states, self._module),
            shapes=self.shapes,
            states={name: {key: self._size(name, key) for key in state} for name, state in first.states.items()},
            name="the merged adapter",
            heads=self.heads,
            dropout=first.dropout if all(s.dropout == first.dropout for s in sources) else 0.0,
        )

    def _layer(self, name: str) -> AdapterLayer:
        layers = [source.layers[name] for source in self.sources]
        if self.watch is not None:
            self.watch(layers)
        used = [layers[i] for i in self.used]
        if self._is_copy(name):
            return used[0]
        if self.space == "delta":
            return self._merge_products(name, [layer for layer in used if isinstance(layer, LoraFactors)])
        if self.combination.align is not None:
            layers = self.combination.align(name, layers)
        layers = [layers[i] for i in self.used]
        first = layers[0].scaled(self.shapes[name].scaling)
        by_name = [layer.scaled(self.shapes[name].scaling).tensors() for layer in layers]
        weights = self._weights_of(name, layers)
        merged = {
            key: self._merge(f"{name}.{key}", [t[key] for t in by_name], weights, first.origin) for key in by_name[0]
        }
        return first.with_tensors(merged)

    def _module(self, name: str) -> dict[str, Tensor]:
        every = [source.modules[name] for source in self.sources]
        states = [every[i] for i in self.used]
        return {
            key: torch.cat([s[key] for s in every])  # heads of tasks of their own, which no average is one of
            if is_output(name, key, self.apart)
            else self._merge_state(f"{name}.{key}", [s[key] for s in states])
            for key in states[0]
        }

    def _size(self, module: str, key: str) -> tuple[int, ...]:
        sizes = [tuple(source.states[module][key]) for source in self.sources]
        return (sum(s[0] for s in sizes), *sizes[0][1:]) if is_output(module, key, self.apart) else sizes[0]

    @property
    def loss(self) -> Loss:
        """What re-factoring lost, over all layers that were asked for."""
        total = Loss()
        for loss in self.errors.values():
            total.add(loss)
        return total

    @property
    def _weights(self) -> list[float]:
        return [self.combination.weights[i] for i in self.used]

    def _weights_of(self, name: str, layers: Sequence[AdapterLayer]) -> list[float]:
        by_layer = self.combination.by_layer
        return self._weights if by_layer is None else by_layer(name, layers)

    def _is_copy(self, layer: str) -> bool:
        """Whether a layer comes out as the one input has it, bit for bit."""
        fits = self.space == "factor" or min(self.rank or 1 << 31, *self._most(layer)) >= self._first(layer).rank
        whole = len(self.used) == 1 and _averages(self._weights) and self.combination.tensors is None
        return whole and fits and self.energy is None

    def _first(self, layer: str) -> Shape:
        return self.sources[self.used[0]].shapes[layer]

    def _most(self, layer: str) -> list[int]:
        """The sizes of a layer, as far as they are known: no product has a higher rank."""
        return [size for size in self._first(layer).sizes if size is not None]

    def _shape(self, layer: str) -> Shape:
        first = self._first(layer)
        shapes = [self.sources[i].shapes[layer] for i in self.used]
        if self._is_copy(layer):
            return first
        if self.space == "factor":
            alpha = first.alpha if len({s.alpha for s in shapes}) == 1 else first.rank * max(s.scaling for s in shapes)
            return dataclasses.replace(first, alpha=alpha)
        highest = max(s.rank for s in shapes) if self.energy is None else sum(self._most(layer))
        most = [self.rank or highest, *self._most(layer)]
        # A sum of products has no more than the sum of their ranks; what other methods yield may have any.
        rank = min([*most, sum(s.rank for s in shapes)] if self.combination.tensors is None else most)
        return dataclasses.replace(first, rank=rank, alpha=float(rank))

    def _merge_products(self, name: str, layers: list[LoraFactors]) -> LoraFactors:
        rank = self.shapes[name].rank
        if self.combination.tensors is None:
            factors, self.errors[name] = refactor_sum(layers, self._weights_of(name, layers), rank, self.energy)
        else:
            delta = self.combination.tensors(name, _Products(layers))
            factors, self.errors[name] = refactor_dense(delta, rank, layers[0].a.dtype, self.energy)
        return factors

    def _merge(self, name: str, tensors: list[Tensor], weights: list[float], origin: float) -> Tensor:
        merge = self.combination.tensors
        if merge is not None:
            return _from_origin(merge, name, tensors, origin)
        if origin == 0 or _averages(weights):
            return weighted_average(tensors, weights)
        return _from_origin(lambda _, updates: weighted_average(updates, weights), name, tensors, origin)

    def _merge_state(self, name: str, tensors: list[Tensor]) -> Tensor:
        first = tensors[0]
        if not first.is_floating_point():
            if any(not torch.equal(first, other) for other in tensors):
                raise MergeError(f"tensor {name!r} of the inputs holds integers that differ and have no average")
            return first
        if self.combination.module is not None:
            return _from_origin(self.combination.module, name, tensors, 0.0)
        shares = self.combination.shares
        return weighted_average(tensors, self._weights if shares is None else [shares[i] for i in self.used])


class _Products(Sequence[Tensor]):
    """The weight updates `(alpha / R) A B` of some factors, computed one by one when they are asked for."""

    def __init__(self, layers: Sequence[LoraFactors]):
        self.layers = layers

    def __len__(self) -> int:
        return len(self.layers)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        return _Products(self.layers[index]) if isinstance(index, slice) else self.layers[index].delta()

    def __iter__(self) -> Iterator[Tensor]:
        return (layer.delta() for layer in self.layers)


def _averages(weights: Sequence[float]) -> bool:
    """Whether they add up to 1."""
    return math.isclose(math.fsum(weights), 1, rel_tol=1e-12)


def _from_origin(merge: MergeTensors, name: str, tensors: list[Tensor], origin: float) -> Tensor:
    dtype = accumulator(tensors[0].dtype)
    return (merge(name, [t.to(dtype) - origin for t in tensors]) + origin).to(tensors[0].dtype)
