"""Plain adapters: one LoRA, one IA3, one bottleneck ... with no routing left in it. What every merge takes and yields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mhr.adapters.base import BaseModel
from mhr.adapters.checkpoint import AdapterCheckpoint, attach_checkpoint
from mhr.adapters.finite import check_finite
from mhr.adapters.layer import AdapterLayer, Shape, Sizes
from mhr.config import VIRTUAL, AdapterConfig
from mhr.layers import AdapterBank
from mhr.methods import SHARED
from mhr.runs.run import RunFolder
from mhr.task_heads import TaskHeads

V = TypeVar("V")


class Lazy(Mapping[str, V]):
    """A mapping whose values are read or computed each time they are asked for, so that they need not fit into memory."""

    def __init__(self, names: Iterable[str], read: Callable[[str], V]):
        self.names, self.read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> V:
        if name not in self.names:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class PlainAdapter:
    """One adapter: a dictionary of layers, in memory, or read and computed when they are asked for (`Lazy`).

    layers    adapted layer -> what the adapter does to it, in the model's order
    base      the model that it belongs to
    modules   module that it brings whole -> its state
    shapes    layer -> its Shape; `states` module -> its tensors' shapes: both known before anything is read

    name      what errors and reports call it
    task      the task that it stands for, where that is known
    digest    the same for adapters that hold the same, whatever they are called; "" where unknown
    run       the run that trained it, where there is one
    heads     what the outputs of the model stand for, where it has heads
    parts, dropout    of the bank (`AdapterConfig`) whose average, mixture or skill it is, for training that goes on from it: the parts of its
              layers that it adapts, and the share of a LoRA's input that is dropped
    """

    layers: Mapping[str, AdapterLayer]
    base: BaseModel
    modules: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    states: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    name: str = "the adapter"
    task: str | None = None
    digest: str = ""
    run: RunFolder | None = None
    heads: TaskHeads | None = None
    parts: list[str] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.shapes = self.shapes or {name: layer.shape for name, layer in self.layers.items()}
        self.states = self.states or {
            name: {key: tuple(t.shape) for key, t in state.items()} for name, state in self.modules.items()
        }

    @property
    def kind(self) -> str:
        """Of its layers, as `AdapterConfig.adapter` names it."""
        return next(iter(self.shapes.values())).kind

    @property
    def sizes(self) -> dict[str, Sizes]:
        """Layer -> (in, out) features."""
        return {name: shape.sizes for name, shape in self.shapes.items()}

    def read(self) -> PlainAdapter:
        """The same with all of it in memory."""
        modules = {name: dict(state) for name, state in self.modules.items()}
        return dataclasses.replace(self, layers=dict(self.layers.items()), modules=modules)

    def checked(self) -> PlainAdapter:
        """The same, which raises CheckpointError where a layer or module that is read holds a value that is not finite."""

        def layer(name: str) -> AdapterLayer:
            found = self.layers[name]
            check_finite(found.tensors(), f"layer {name!r} of {self.name}")
            return found

        def module(name: str) -> Mapping[str, Tensor]:
            found = self.modules[name]
            check_finite(found, f"module {name!r} of {self.name}")
            return found

        return dataclasses.replace(self, layers=Lazy(self.layers, layer), modules=Lazy(self.modules, module))

    def cast(self, dtype: torch.dtype) -> PlainAdapter:
        """The same in another dtype; counters and the like stay what they are."""

        def to(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}

        def layer(name: str) -> AdapterLayer:
            found = self.layers[name]
            return found.with_tensors(to(found.tensors()))

        return dataclasses.replace(
            self,
            layers=Lazy(self.layers, layer),
            modules=Lazy(self.modules, lambda name: to(self.modules[name])),
            shapes={name: dataclasses.replace(shape, dtype=dtype) for name, shape in self.shapes.items()},
            digest=f"{self.digest} {dtype}",
        )


def attach_plain(model: nn.Module, plain: PlainAdapter, task: str = "merged") -> AdapterBank:
    """Attach a plain adapter to its base model as a bank of one skill, shared by all tasks and named after one.

    Raises CheckpointError for another base model, naming what differs.
    """
    return attach_checkpoint(plain_checkpoint(plain, task), model)


def plain_checkpoint(plain: PlainAdapter, task: str = "merged") -> AdapterCheckpoint:
    """A plain adapter as a checkpoint in memory: one skill that all tasks share, one task, of the `bank_size` of its layers.

    Layers of a lower rank get zeros up to it, which train to nothing, and where the scaling of a LoRA differs B takes up the
    difference. Raises CheckpointError for a layer that no bank can hold.
    """
    checkpoint = describe_plain(plain, task)
    checkpoint.tensors = {key: tensor for part in plain_tensors(plain) for key, tensor in part.items()}
    return checkpoint


def describe_plain(plain: PlainAdapter, task: str = "merged") -> AdapterCheckpoint:
    """`plain_checkpoint` without its tensors."""
    rank, alpha = bank_size(plain.shapes.values())
    size: dict[str, Any] = {"virtual_tokens": rank} if plain.kind in VIRTUAL else {"rank": rank, "alpha": alpha}
    if plain.kind == "gated":
        names = {"lora": "rank", "bottleneck": "width", "prefix": "virtual_tokens"}
        size = {names[shape.part]: shape.rank for shape in plain.shapes.values()}
    config = AdapterConfig(
        method=SHARED,
        adapter=plain.kind,
        **size,
        targets=list(plain.shapes),
        parts=plain.parts,
        dropout=plain.dropout,
        norm=next(iter(plain.shapes.values())).norm,
        modules_to_save=list(plain.modules),
    )
    return AdapterCheckpoint(
        config=config,
        tasks=[task],
        base=plain.base,
        layers=plain.sizes,
        groups={name: name for name in plain.shapes},
        modules=list(plain.modules),
        tensors={},
        name=plain.name,
        heads=plain.heads,
    )


def plain_tensors(plain: PlainAdapter) -> Iterator[dict[str, Tensor]]:
    """The tensors of `plain_checkpoint`, by one layer or module after the other."""
    described = describe_plain(plain)
    rank, alpha = described.config.rank, described.config.alpha
    # Layers that share a bank are the same: one stands for all.
    for bank, name in {described.bank_of(name): name for name in plain.shapes}.items():
        yield {f"{bank}{key}": tensor for key, tensor in plain.layers[name].as_bank(name, rank, alpha).items()}
    for module, state in plain.modules.items():
        yield {f"modules.{module}.{key}": tensor for key, tensor in state.items()}


def bank_size(layers: Iterable[Shape]) -> tuple[int, float]:
    """The one (rank, alpha) that a bank has for layers of these: the highest rank, and the scaling of all or else the largest."""
    layers = list(layers)
    rank = max(shape.rank for shape in layers)
    if layers[0].kind != "lora":
        return rank, 1.0
    sizes = {(shape.rank, shape.alpha) for shape in layers}
    return sizes.pop() if len(sizes) == 1 else (rank, rank * max(alpha / r for r, alpha in sizes))
