"""One layer of a plain adapter: LoRA factors, an IA3 vector, a bottleneck ... The unit that everything else is made of."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mhr.errors import CheckpointError
from mhr.ops.checks import accumulator

Sizes = tuple[int | None, int | None]
"""(in, out) features of an adapted layer; None where an adapter does not tell."""


@dataclass(frozen=True)
class Shape:
    """What is known of a layer before it is read.

    kind     of its adapter
    rank     hidden units; 1 where there are none. alpha / rank is what the update is multiplied by
    inputs   whether an IA3 scales the inputs of its layer rather than the outputs
    norm     whether a bottleneck has a layer norm
    part     of a gated adapter, that it is: lora, bottleneck or prefix, of which rank counts the virtual tokens
    """

    kind: str
    sizes: Sizes
    dtype: torch.dtype | None
    rank: int = 1
    alpha: float = 1.0
    inputs: bool = False
    norm: bool = False
    part: str = ""

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class AdapterLayer(ABC):
    """What an adapter does to one layer of its base model.

    kind     as `AdapterConfig.adapter` names it
    title    the kind with its article, for messages
    ranked   whether it has hidden units
    unfit    what it has that no weight of its base layer could take up; "" where nothing
    aligned  whether it has hidden units that can be matched with another's (mera)
    tied     whether layers share their tensors and hand a state on, so that a layer is not merged by itself
    origin   the value of all of its tensors at which an adapter of this kind does nothing
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    ranked: ClassVar[bool] = True
    unfit: ClassVar[str] = ""
    aligned: ClassVar[bool] = False
    tied: ClassVar[bool] = False
    origin: ClassVar[float] = 0.0

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """All but the values."""

    @property
    def rank(self) -> int:
        """Hidden units; 1 where there are none."""
        return self.shape.rank

    @property
    def scaling(self) -> float:
        """What the update is multiplied by; 1 where it is not."""
        return self.shape.scaling

    @property
    def sizes(self) -> Sizes:
        return self.shape.sizes

    def fits(self, said: Shape) -> bool:
        """Whether it is of this shape, as far as both tell, in whatever dtype."""
        own = self.shape
        sizes = zip(own.sizes, said.sizes, strict=True)
        return own.rank == said.rank and all(None in pair or pair[0] == pair[1] for pair in sizes) and self.agrees()

    def agrees(self) -> bool:
        """Whether its tensors are of shapes that go together."""
        return True

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {f.name: t for f in dataclasses.fields(self) if isinstance(t := getattr(self, f.name), Tensor)}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The layer with other tensors in the places of its own."""
        return dataclasses.replace(self, **tensors)

    def scaled(self, scaling: float) -> Self:
        """The same update with another alpha / rank; itself where nothing is scaled."""
        return self

    @abstractmethod
    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        """Parameters [1, 1, ...] of a bank of one head and one skill that does the same to layer `name`: those of a routed layer
        of its kind, by their names. Units that it lacks to `rank` are zeros."""


@dataclass(frozen=True)
class LoraFactors(AdapterLayer):
    """The update `x -> (alpha / R) * (x A) B` (arXiv 2106.09685): a [I, R], b [R, O]."""

    kind = "lora"
    title = "a LoRA"
    aligned = True

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def shape(self) -> Shape:
        return Shape(self.kind, (self.a.shape[0], self.b.shape[1]), self.a.dtype, self.a.shape[1], self.alpha)

    def agrees(self) -> bool:
        return self.a.shape[1] == self.b.shape[0]

    def delta(self) -> Tensor:
        """`(alpha / R) * A B` [I, O], in float32 (float64 for float64 factors)."""
        dtype = accumulator(torch.promote_types(self.a.dtype, self.b.dtype))
        return self.scaling * (self.a.to(dtype) @ self.b.to(dtype))

    def scaled(self, scaling: float) -> LoraFactors:
        """The share of another alpha / R is taken up by both factors evenly."""
        if self.scaling == scaling:
            return self
        share = (self.scaling / scaling) ** 0.5
        return LoraFactors(self.a * share, self.b * share, scaling * self.rank)

    def widened(self, rank: int, alpha: float) -> LoraFactors:
        """The same update at a rank that is no lower, filled up with zeros, and another alpha, which B takes up alone."""
        factors = self.as_bank("", rank, alpha)
        return LoraFactors(factors["bank_a"][0, 0], factors["bank_b"][0, 0].to(self.b.dtype), alpha)

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        """B takes up the difference of scalings, in float32 at least: in 16 bits it would be rounded once more."""
        same = self.scaling == alpha / rank
        b = self.b if same else self.b.to(accumulator(self.b.dtype)) * (self.scaling / (alpha / rank))
        return _padded(self.rank, rank, bank_a=self.a, bank_b=b)


@dataclass(frozen=True)
class IA3Vector(AdapterLayer):
    """Scaling by a vector (arXiv 2205.05638): `y -> v * y` [O] of the layer's output, or `x -> v * x` [I] of its input."""

    kind = "ia3"
    title = "an IA3"
    ranked = False
    origin = 1.0

    v: Tensor
    inputs: bool = False

    @property
    def shape(self) -> Shape:
        n = self.v.shape[0]
        return Shape(self.kind, (n, None) if self.inputs else (None, n), self.v.dtype, inputs=self.inputs)

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        """Raises CheckpointError where it scales inputs, which no bank does."""
        if self.inputs:
            raise CheckpointError(
                f"layer {name!r} has an IA3 that scales its inputs (PEFT's feedforward_modules), which no bank of adapters does: "
                "fold it into the base model, with mhr merge INPUT --to model"
            )
        return {"bank_v": self.v[None, None, None]}


@dataclass(frozen=True)
class FilmVectors(AdapterLayer):
    """A scale and a shift of a layer's output: `y -> (1 + scale) * y + shift`, both [O]."""

    kind = "film"
    title = "a FiLM"
    ranked = False

    scale: Tensor
    shift: Tensor

    @property
    def shape(self) -> Shape:
        return Shape(self.kind, (None, self.scale.shape[0]), self.scale.dtype)

    def agrees(self) -> bool:
        return self.scale.shape == self.shift.shape

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        return {"bank_scale": self.scale[None, None, None], "bank_shift": self.shift[None, None, None]}


@dataclass(frozen=True)
class BiasShift(AdapterLayer):
    """A shift of a layer's bias (arXiv 2106.10199): `y -> y + shift` [O]."""

    kind = "bias"
    title = "a shift of biases"
    ranked = False

    shift: Tensor

    @property
    def shape(self) -> Shape:
        return Shape(self.kind, (None, self.shift.shape[0]), self.shift.dtype)

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        return {"bank_shift": self.shift[None, None, None]}


@dataclass(frozen=True)
class BottleneckFactors(AdapterLayer):
    """The update `h -> gelu(h A + a) B + b` of a layer's output h (arXiv 2205.12410): a [O, R], b [R, O], bias_a [R], bias_b [O].

    With scale_b and shift_b [O], which come together, `scale_b * LN(gelu(h A + a) B + b) + shift_b` (arXiv 2106.04489).
    """

    kind = "bottleneck"
    title = "a bottleneck adapter"
    unfit = "a bottleneck has a GELU inside"
    aligned = True

    a: Tensor
    b: Tensor
    bias_a: Tensor
    bias_b: Tensor
    scale_b: Tensor | None = None
    shift_b: Tensor | None = None

    @property
    def shape(self) -> Shape:
        norm = self.scale_b is not None
        return Shape(self.kind, (None, self.a.shape[0]), self.a.dtype, self.a.shape[1], norm=norm)

    def agrees(self) -> bool:
        outputs = {t.shape[-1] for t in (self.b, self.bias_b, self.scale_b, self.shift_b) if t is not None}
        return outputs == {self.a.shape[0]} and self.bias_a.shape[0] == self.b.shape[0] == self.a.shape[1]

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        biases = {"bias_a": self.bias_a[None], "bias_b": self.bias_b[None]}
        norm = {key: t[None, None, None] for key, t in self.tensors().items() if key in ("scale_b", "shift_b")}
        return _padded(self.rank, rank, bank_a=self.a, bank_b=self.b, **biases) | norm


@dataclass(frozen=True)
class RecurrentFactors(AdapterLayer):
    """The update `x -> h B` of a layer's output x with `h = relu(x A + carry_a * h' + bias_a)`, h' the state h of the adapter before (arXiv
    2403.19709): a [O, R], carry_a and bias_a [R], b [R, O]. The same in all layers that share a bank."""

    kind = "recurrent"
    title = "an HRA"
    unfit = "an HRA has a ReLU inside and a state that goes from layer to layer"
    tied = True

    a: Tensor
    carry_a: Tensor
    bias_a: Tensor
    b: Tensor

    @property
    def shape(self) -> Shape:
        return Shape(self.kind, (None, self.a.shape[0]), self.a.dtype, self.a.shape[1])

    def agrees(self) -> bool:
        return self.b.shape == self.a.T.shape and self.carry_a.shape == self.bias_a.shape == self.a.shape[1:]

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        rows = {"carry_a": self.carry_a[None], "bias_a": self.bias_a[None]}
        return _padded(self.rank, rank, bank_a=self.a, **rows, bank_b=self.b)


@dataclass(frozen=True)
class VirtualTokens(AdapterLayer):
    """Embeddings of virtual tokens before what a model reads (arXiv 2104.08691): tokens [P, W]. Their number is the shape's rank."""

    kind = "prompt"
    title = "a prompt"
    unfit = "a prompt has virtual tokens in front of the input"
    ranked = False

    tokens: Tensor

    @property
    def shape(self) -> Shape:
        return Shape(self.kind, (None, None), self.tokens.dtype, self.tokens.shape[0])

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        return {"bank_tokens": self.tokens[None, None]}


@dataclass(frozen=True)
class PrefixTokens(VirtualTokens):
    """Keys and values of virtual tokens in a decoder's self-attention (arXiv 2101.00190), likewise."""

    kind = "prefix"
    title = "a prefix"
    unfit = "a prefix has virtual tokens in front of the input"


@dataclass(frozen=True)
class GatedPart(AdapterLayer):
    """A part of a gated adapter (arXiv 2110.07577), scaled by `sigmoid(x gate + gate_bias)` of what it reads: gate [I], gate_bias [1]."""

    kind = "gated"
    title = "a gated adapter"
    unfit = "a gated adapter has gates, which depend on what its layers read"

    part: ClassVar[str]

    gate: Tensor
    gate_bias: Tensor

    def _gates(self) -> dict[str, Tensor]:
        return {"gate_a": self.gate[None, None, :, None], "gate_bias": self.gate_bias[None, None, None]}


@dataclass(frozen=True)
class GatedLora(GatedPart):
    """The update `x -> G (x A) B`: a [I, R], b [R, O]."""

    part = "lora"

    a: Tensor
    b: Tensor

    @property
    def shape(self) -> Shape:
        sizes = self.a.shape[0], self.b.shape[1]
        return Shape(self.kind, sizes, self.a.dtype, self.a.shape[1], part=self.part)

    def agrees(self) -> bool:
        return self.a.shape[1] == self.b.shape[0] and self.gate.shape == self.a.shape[:1]

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        return _padded(self.rank, self.rank, bank_a=self.a, bank_b=self.b) | self._gates()


@dataclass(frozen=True)
class GatedBottleneck(GatedPart):
    """The update `h -> G (gelu(h A + a) B + b)` of a layer's output h: a [O, R], b [R, O], bias_a [R], bias_b [O]."""

    part = "bottleneck"

    a: Tensor
    b: Tensor
    bias_a: Tensor
    bias_b: Tensor

    @property
    def shape(self) -> Shape:
        return Shape(self.kind, (None, self.a.shape[0]), self.a.dtype, self.a.shape[1], part=self.part)

    def agrees(self) -> bool:
        outputs = {self.b.shape[-1], self.bias_b.shape[0], self.gate.shape[0]}
        return outputs == {self.a.shape[0]} and self.bias_a.shape[0] == self.b.shape[0] == self.a.shape[1]

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        biases = {"bias_a": self.bias_a[None], "bias_b": self.bias_b[None]}
        return _padded(self.rank, self.rank, bank_a=self.a, bank_b=self.b, **biases) | self._gates()


@dataclass(frozen=True)
class GatedPrefix(GatedPart):
    """Keys and values in front of those of a self-attention, of whose keys this is the layer, times G: keys, values [P, O]."""

    part = "prefix"

    keys: Tensor
    values: Tensor

    @property
    def shape(self) -> Shape:
        sizes = self.gate.shape[0], self.keys.shape[1]
        return Shape(self.kind, sizes, self.keys.dtype, self.keys.shape[0], part=self.part)

    def agrees(self) -> bool:
        return self.keys.shape == self.values.shape

    def as_bank(self, name: str, rank: int, alpha: float) -> dict[str, Tensor]:
        return {"bank_keys": self.keys[None, None], "bank_values": self.values[None, None]} | self._gates()


_KINDS = (
    LoraFactors,
    IA3Vector,
    FilmVectors,
    BiasShift,
    BottleneckFactors,
    RecurrentFactors,
    VirtualTokens,
    PrefixTokens,
    GatedPart,
)
ADAPTER_LAYERS: dict[str, type[Any]] = {cls.kind: cls for cls in _KINDS}
"""Kind of adapter -> a layer of it."""


def _padded(own: int, rank: int, **factors: Tensor) -> dict[str, Tensor]:
    """Factors of rank `own` as banks of one head and one skill, filled up with zeros to `rank`; biases are rows."""
    wider = {"bank_a": (0, 1), "bank_b": (0, 0, 0, 1), "bias_a": (0, 1), "bias_b": (0, 0), "carry_a": (0, 1)}
    return {
        name: nn.functional.pad(t, [n * (rank - own) for n in wider[name]])[None, None].contiguous()
        for name, t in factors.items()
    }
