"""Adapters that are read layer by layer: what a merge takes, what it yields, and what is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mhr.checkpoint import AdapterCheckpoint, BaseModel, TensorFile, routing_keys
from mhr.checkpoint.base import Sizes
from mhr.checkpoint.plain import KINDS, LoraFactors, PlainAdapter
from mhr.interop import PeftAdapter
from mhr.runs.run import RunFolder

Layer = Any
"""One layer of a plain adapter: LoraFactors, the vector of an IA3, BottleneckFactors."""


@dataclass(frozen=True)
class Shape:
    """What is known of a layer before it is read. rank and alpha: of a LoRA's factors; a bottleneck's width is its rank."""

    sizes: Sizes
    dtype: torch.dtype | None
    rank: int
    alpha: float

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


class Source(ABC):
    """A plain adapter that is read layer by layer, so that any number of them need not fit into memory.

    name     what errors and reports call it
    kind     "lora", "ia3", "bottleneck": a key of KINDS
    base     the model it belongs to
    task     the task that it stands for, where that is known
    digest   the same for sources that hold the same, whatever they are called
    shapes   layer -> Shape, in the model's order
    modules  module that is stored whole -> its tensors' shapes by name
    run      the run that trained it, where there is one
    """

    name: str
    kind: str
    base: BaseModel
    task: str | None
    digest: str
    shapes: dict[str, Shape]
    modules: dict[str, dict[str, tuple[int, ...]]]
    run: RunFolder | None = None

    @abstractmethod
    def layer(self, name: str) -> Layer:
        """A layer, read or computed now."""

    @abstractmethod
    def module(self, name: str) -> dict[str, Tensor]:
        """The state of a module that is stored whole, read or computed now."""

    def plain(self) -> PlainAdapter:
        """All of it, in memory."""
        layers = {name: self.layer(name) for name in self.shapes}
        return KINDS[self.kind](layers, self.base, {name: self.module(name) for name in self.modules})


class BankSource(Source):
    """A bank as `collapse` sees it, a function from a checkpoint to a plain adapter, which is applied layer by layer."""

    def __init__(
        self,
        name: str,
        checkpoint: AdapterCheckpoint,
        file: TensorFile,
        collapse: Callable[[AdapterCheckpoint], PlainAdapter],
        how: str,
        task: str | None = None,
    ):
        """`checkpoint` without its tensors, which are in `file`. how: tells different functions on one bank apart."""
        config = checkpoint.config
        self.name, self.kind, self.base, self.task = name, config.adapter, checkpoint.base, task
        self.checkpoint, self.file, self.collapse = checkpoint, file, collapse
        self.digest = _digest(file, config.to_dict(), checkpoint.tasks, checkpoint.groups, how)
        self._keys: dict[str, list[str]] = {layer: [] for layer in checkpoint.layers}
        self._routers = routing_keys(checkpoint, file.shapes)
        for key in file.shapes:
            part, _, rest = key.partition(".")
            if part == "layers":
                self._keys[rest.rpartition(".")[0]].append(key)
        self.shapes = {
            layer: Shape(sizes, file.dtypes[self._keys[layer][0]], config.rank, float(config.alpha))
            for layer, sizes in checkpoint.layers.items()
        }
        self.modules = {
            module: {key: file.shapes[f"modules.{module}.{key}"] for key in _under(f"modules.{module}.", file)}
            for module in checkpoint.modules
        }

    def layer(self, name: str) -> Layer:
        group = self.checkpoint.groups[name]
        alone = dataclasses.replace(
            self.checkpoint,
            layers={name: self.checkpoint.layers[name]},
            groups={name: group},
            modules=[],
            tensors=self.file.read([*self._keys[name], *self._routers.get(group, {}).values()]),
        )
        return self.collapse(alone).layers[name]

    def module(self, name: str) -> dict[str, Tensor]:
        prefix = f"modules.{name}."
        found = self.file.read(prefix + key for key in self.modules[name])
        return {key.removeprefix(prefix): tensor for key, tensor in found.items()}


class PeftSource(Source):
    """The LoRA or IA3 in a PEFT folder."""

    def __init__(self, name: str, adapter: PeftAdapter, task: str | None = None):
        self.name, self.kind, self.base, self.task = name, adapter.kind, adapter.base, task
        self.adapter = adapter
        dtypes = {layer: self._dtype(layer) for layer in adapter.layers}
        self.shapes = {
            layer: Shape(sizes, dtypes[layer], *adapter.ranks.get(layer, (1, 1.0)))
            for layer, sizes in adapter.layers.items()
        }
        self.digest = _digest(adapter.file, adapter.kind, adapter.ranks)
        self.modules = {
            module: {key: adapter.file.shapes[full] for key, full in keys.items()}
            for module, keys in adapter.modules.items()
        }

    def layer(self, name: str) -> Layer:
        return self.adapter.layer(name)

    def module(self, name: str) -> dict[str, Tensor]:
        return self.adapter.module(name)

    def _dtype(self, layer: str) -> torch.dtype | None:
        return self.adapter.file.dtypes[self.adapter.layer_keys(layer)[0]]


class CastSource(Source):
    """Another source in another dtype; counters and the like stay what they are."""

    def __init__(self, source: Source, dtype: torch.dtype):
        self.source, self.dtype = source, dtype
        self.name, self.kind, self.base, self.task = source.name, source.kind, source.base, source.task
        self.digest, self.modules = f"{source.digest} {dtype}", source.modules
        self.shapes = {layer: dataclasses.replace(shape, dtype=dtype) for layer, shape in source.shapes.items()}

    def layer(self, name: str) -> Layer:
        layer = self.source.layer(name)
        return with_tensors(layer, {key: self._cast(t) for key, t in tensors_of(layer).items()})

    def module(self, name: str) -> dict[str, Tensor]:
        return {key: self._cast(tensor) for key, tensor in self.source.module(name).items()}

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def tensors_of(layer: Layer) -> dict[str, Tensor]:
    """The tensors of a layer by name: a, b of LoRA factors, v where the layer is one vector."""
    if isinstance(layer, Tensor):
        return {"v": layer}
    return {f.name: t for f in dataclasses.fields(layer) if isinstance(t := getattr(layer, f.name), Tensor)}


def with_tensors(layer: Layer, tensors: dict[str, Tensor]) -> Layer:
    """The layer with other tensors in the places of its own."""
    return tensors["v"] if isinstance(layer, Tensor) else dataclasses.replace(layer, **tensors)


def scaled(factors: LoraFactors, scaling: float) -> LoraFactors:
    """The same update with another alpha / R, its share taken up by both factors evenly; itself where nothing changes."""
    if factors.scaling == scaling:
        return factors
    share = (factors.scaling / scaling) ** 0.5
    return LoraFactors(factors.a * share, factors.b * share, scaling * factors.rank)


def _under(prefix: str, file: TensorFile) -> list[str]:
    return [key.removeprefix(prefix) for key in file.shapes if key.startswith(prefix)]


def _digest(file: TensorFile, *settings: Any) -> str:
    text = json.dumps([file.digest, *settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
