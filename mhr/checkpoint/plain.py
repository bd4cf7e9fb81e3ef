"""Plain adapters: one LoRA, one IA3 or one bottleneck with no routing left in it. What every merge yields."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mhr.checkpoint.adapter import AdapterCheckpoint, attach_checkpoint
from mhr.checkpoint.base import BaseModel, Sizes
from mhr.config import AdapterConfig
from mhr.layers import AdapterBank
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
    def sizes(self) -> tuple[int, int]:
        """(I, O)."""
        return self.a.shape[0], self.b.shape[1]

    def delta(self) -> Tensor:
        """`(alpha / R) * A B` [I, O], in float32 (float64 for float64 factors)."""
        dtype = accumulator(torch.promote_types(self.a.dtype, self.b.dtype))
        return self.scaling * (self.a.to(dtype) @ self.b.to(dtype))


@dataclass(frozen=True)
class PlainLora:
    """One LoRA (arXiv 2106.09685). `modules` holds what the adapter stores whole: module -> its state."""

    layers: dict[str, LoraFactors]
    base: BaseModel
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, Sizes]:
        """Layer -> (in, out) features."""
        return {name: factors.sizes for name, factors in self.layers.items()}


@dataclass(frozen=True)
class PlainIA3:
    """One IA3 (arXiv 2205.05638): each layer's output is multiplied by its vector [O]."""

    layers: dict[str, Tensor]
    base: BaseModel
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, Sizes]:
        """Layer -> (in, out) features; a vector does not tell the first."""
        return {name: (None, vector.shape[0]) for name, vector in self.layers.items()}


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


@dataclass(frozen=True)
class PlainBottleneck:
    """One bottleneck adapter (arXiv 2205.12410): what a bank of them, AdaMix's above all, merges to."""

    layers: dict[str, BottleneckFactors]
    base: BaseModel
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, Sizes]:
        """Layer -> (in, out) features; a bottleneck does not tell the first."""
        return {name: (None, factors.a.shape[0]) for name, factors in self.layers.items()}


PlainAdapter = PlainLora | PlainIA3 | PlainBottleneck

KINDS: dict[str, type[PlainAdapter]] = {"lora": PlainLora, "ia3": PlainIA3, "bottleneck": PlainBottleneck}
"""Kind of adapter, as `AdapterConfig.adapter` names it -> a plain one."""


def attach_plain(model: nn.Module, plain: PlainAdapter, task: str = "merged") -> AdapterBank:
    """Attach a plain adapter to its base model as a bank of one skill, shared by all tasks and named after one.

    Raises CheckpointError for another base model, naming what differs.
    """
    return attach_checkpoint(plain_checkpoint(plain, task), model, f"the plain {_kind(plain)}")


def plain_checkpoint(plain: PlainAdapter, task: str = "merged") -> AdapterCheckpoint:
    """A plain adapter as a checkpoint: method shared, one task.

    A bank has one rank and one scaling. Layers of a lower rank get zeros up to the highest, which train to nothing, and where
    the scalings of a LoRA differ B takes up the difference.
    """
    tensors: dict[str, Tensor] = {}
    rank, alpha = 1, 1.0
    if isinstance(plain, PlainLora):
        rank = max(factors.rank for factors in plain.layers.values())
        kinds = {(factors.rank, factors.alpha) for factors in plain.layers.values()}
        alpha = kinds.pop()[1] if len(kinds) == 1 else rank * max(f.scaling for f in plain.layers.values())
        for name, factors in plain.layers.items():
            b = factors.b if factors.scaling == alpha / rank else factors.b * (factors.scaling / (alpha / rank))
            tensors |= _banks(name, rank, bank_a=factors.a, bank_b=b)
    elif isinstance(plain, PlainBottleneck):
        rank = max(bottleneck.rank for bottleneck in plain.layers.values())
        for name, f in plain.layers.items():
            tensors |= _banks(name, rank, bank_a=f.a, bank_b=f.b, bias_a=f.bias_a[None], bias_b=f.bias_b[None])
    else:
        tensors = {f"layers.{name}.bank_v": vector[None, None, None] for name, vector in plain.layers.items()}
    for module, state in plain.modules.items():
        tensors.update({f"modules.{module}.{key}": tensor for key, tensor in state.items()})
    config = AdapterConfig(
        method="shared",
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
