"""Plain adapters: one LoRA, one IA3 or one bottleneck with no routing left in it. What every merge yields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mhr.checkpoint.adapter import AdapterCheckpoint, attach_checkpoint
from mhr.checkpoint.base import BaseModel, Sizes
from mhr.config import AdapterConfig
from mhr.layers import AdapterBank
from mhr.methods import SHARED
from mhr.ops.checks import accumulator


@dataclass(frozen=True)
class LoraFactors:
    """The update `x -> (alpha / R) * (x A) B` of one layer: a [I, R], b [R, O]."""

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def sizes(self) -> Sizes:
        """(I, O)."""
        return self.a.shape[0], self.b.shape[1]

    def delta(self) -> Tensor:
        """`(alpha / R) * A B` [I, O], in float32 (float64 for float64 factors)."""
        dtype = accumulator(torch.promote_types(self.a.dtype, self.b.dtype))
        return self.scaling * (self.a.to(dtype) @ self.b.to(dtype))


@dataclass(frozen=True)
class BottleneckFactors:
    """The update `h -> gelu(h A + a) B + b` of one layer's output h: a [O, R], b [R, O], bias_a [R], bias_b [O]."""

    a: Tensor
    b: Tensor
    bias_a: Tensor
    bias_b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    @property
    def sizes(self) -> Sizes:
        """(None, O): a bottleneck does not tell the inputs of its layer."""
        return None, self.a.shape[0]


Held = TypeVar("Held", LoraFactors, Tensor, BottleneckFactors)


@dataclass(frozen=True)
class _Plain(Generic[Held]):
    """layers: adapted layer -> what the adapter holds for it; modules: what it stores whole, module -> its state."""

    layers: dict[str, Held]
    base: BaseModel
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, Sizes]:
        """Layer -> (in, out) features; None where the adapter does not tell them."""
        return {
            name: (None, held.shape[0]) if isinstance(held, Tensor) else held.sizes
            for name, held in self.layers.items()
        }


class PlainLora(_Plain[LoraFactors]):
    """One LoRA (arXiv 2106.09685)."""


class PlainIA3(_Plain[Tensor]):
    """One IA3 (arXiv 2205.05638): each layer's output is multiplied by its vector [O]."""


class PlainBottleneck(_Plain[BottleneckFactors]):
    """One bottleneck adapter (arXiv 2205.12410): what a bank of them, AdaMix's above all, merges to."""


PlainAdapter = PlainLora | PlainIA3 | PlainBottleneck

KINDS: dict[str, type[Any]] = {"lora": PlainLora, "ia3": PlainIA3, "bottleneck": PlainBottleneck}
"""Kind of adapter, as `AdapterConfig.adapter` names it -> a plain one."""


def attach_plain(model: nn.Module, plain: PlainAdapter, task: str = "merged") -> AdapterBank:
    """Attach a plain adapter to its base model as a bank of one skill, shared by all tasks and named after one.

    Raises CheckpointError for another base model, naming what differs.
    """
    return attach_checkpoint(plain_checkpoint(plain, task), model, f"the plain {_kind(plain)}")


def plain_checkpoint(
    plain: PlainAdapter, task: str = "merged", size: tuple[int, float] | None = None
) -> AdapterCheckpoint:
    """A plain adapter as a checkpoint: one skill that all tasks share, one task.

    size: (rank, alpha) of the bank; None takes the `bank_size` of the adapter's layers. Layers of a lower rank get zeros up to
    it, which train to nothing, and where the scaling of a LoRA differs B takes up the difference.
    """
    tensors: dict[str, Tensor] = {}
    rank, alpha = 1, 1.0
    if isinstance(plain, PlainLora):
        rank, alpha = size or bank_size((factors.rank, factors.alpha) for factors in plain.layers.values())
        for name, factors in plain.layers.items():
            b = factors.b if factors.scaling == alpha / rank else factors.b * (factors.scaling / (alpha / rank))
            tensors |= _banks(name, rank, bank_a=factors.a, bank_b=b)
    elif isinstance(plain, PlainBottleneck):
        rank, _ = size or bank_size((factors.rank, 1.0) for factors in plain.layers.values())
        for name, f in plain.layers.items():
            tensors |= _banks(name, rank, bank_a=f.a, bank_b=f.b, bias_a=f.bias_a[None], bias_b=f.bias_b[None])
    else:
        tensors = {f"layers.{name}.bank_v": vector[None, None, None] for name, vector in plain.layers.items()}
    for module, state in plain.modules.items():
        tensors.update({f"modules.{module}.{key}": tensor for key, tensor in state.items()})
    config = AdapterConfig(
        method=SHARED,
        adapter=_kind(plain),
        rank=rank,
        alpha=alpha,
        targets=list(plain.layers),
        modules_to_save=list(plain.modules),
    )
    return AdapterCheckpoint(
        config=config,
        tasks=[task],
        base=plain.base,
        layers=plain.sizes,
        groups={name: name for name in plain.layers},
        modules=list(plain.modules),
        tensors=tensors,
    )


def bank_size(layers: Iterable[tuple[int, float]]) -> tuple[int, float]:
    """The one (rank, alpha) that a bank has for layers of these: the highest rank, and the scaling of all or else the largest."""
    sizes = set(layers)
    if len(sizes) == 1:
        return sizes.pop()
    rank = max(rank for rank, _ in sizes)
    return rank, rank * max(alpha / r for r, alpha in sizes)


def _banks(layer: str, rank: int, **factors: Tensor) -> dict[str, Tensor]:
    """Factors as banks of one head and one skill, filled up with zeros to `rank`; biases are rows."""
    wider = {"bank_a": (0, 1), "bank_b": (0, 0, 0, 1), "bias_a": (0, 1), "bias_b": (0, 0)}
    own = factors["bank_a"].shape[1]
    return {
        f"layers.{layer}.{name}": nn.functional.pad(t, [n * (rank - own) for n in wider[name]])[None, None].contiguous()
        for name, t in factors.items()
    }


def _kind(plain: PlainAdapter) -> str:
    return next(kind for kind, cls in KINDS.items() if isinstance(plain, cls))
