"""What every routed layer has: the frozen layer it wraps, its router, and the state that says which tasks are at work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.errors import TargetError
from mhr.layers.layouts import Layout
from mhr.layers.linear import features
from mhr.ops import mix
from mhr.ops.checks import accumulator
from mhr.routing import FusionRouter, Router, RoutingBatch, RoutingState
from mhr.routing.adamix import draw


class Segments(NamedTuple):
    """How one layer is routed in one call: which row of its factors each of G segments of x takes.

    weights  [U, H, S], by which skills are averaged into U rows of factors; None where each skill is a row of its own
    rows     int64 [G], the row of factor A
    rows_b   int64 [G], the row of factor B; None where it is that of A
    offsets  int64 [G + 1], the first token of each segment and the end; None where they are equal
    transform  [U, R, R], what the rows of factor A are multiplied by; None where the method has no such
    """

    weights: Tensor | None
    rows: Tensor
    rows_b: Tensor | None = None
    offsets: Tensor | None = None
    transform: Tensor | None = None


class RoutedLayer(nn.Module, ABC):
    """A frozen Linear-like layer `base` with a bank of adapters beside it.

    Subclasses hold the bank's parameters, each with the head axis first and the skill axis second, and name them in
    `bank_names`, and in `head_dims` the axis of each along which the heads' blocks are joined (see `mhr.ops.mix`). They are
    float32 on the device of the base layer, float64 beside a float64 one. The router is shared between
    layers and owned by the `AdapterBank`, so it is no submodule here. In a `state_dict` the base layer's tensors keep the
    names that they have without the bank.
    """

    bank_names: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = ()
    base: nn.Module
    layout = Layout.ROWS
    """How the layer's x holds the rows of the batch."""

    doubtful = False
    """Whether nothing but the shapes of its calls says that `layout` is right (a model that this library does not know)."""

    in_block = False
    """Whether the layer stands in a transformer block, where x has an axis of positions."""

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__()
        self.base = base
        self.name = name
        self.config = config
        self.state = state
        self._router = (router,)  # in a tuple, so that nn.Module does not register it
        self._owner: tuple[RoutedLayer, ...] = ()  # likewise
        self.in_features, self.out_features = features(base)
        self.register_state_dict_post_hook(_without_base)
        self.register_load_state_dict_pre_hook(_with_base)

    @property
    def router(self) -> Router:
        return self._router[0]

    # Model code looks at these of the layer it thinks it holds (T5 reads `wo.weight.dtype`).
    @property
    def weight(self) -> Tensor:
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    def bank(self) -> dict[str, nn.Parameter]:
        """The bank's parameters by name."""
        for owner in self._owner:
            return owner.bank()
        return {name: self._parameters[name] for name in self.bank_names}  # type: ignore[misc]

    def tie(self, owner: RoutedLayer) -> None:
        """Have no bank but that of `owner`, a layer of the same kind and shape."""
        self._owner = (owner,)
        for name in self.bank_names:
            delattr(self, name)

    @property
    def tied(self) -> bool:
        """Whether its bank is another layer's."""
        return bool(self._owner)

    def fit(self, model: nn.Module) -> None:
        """Learn of the model, before it is changed, what more than the base layer decides of the bank. Raises TargetError for a model that
        does not fit."""

    @abstractmethod
    def fresh(self, name: str, n_skills: int) -> Tensor:
        """Initial values of the bank parameter `name` for `n_skills` skills, on the device of the base layer."""

    def reset(self) -> None:
        """Draw the bank again, unless it is another layer's."""
        for name in () if self.tied else self.bank_names:
            self.register_parameter(name, nn.Parameter(self.fresh(name, self.skills_of(name))))

    def skills_of(self, name: str) -> int:
        """Skills of the bank parameter `name`: one where all of them share it."""
        return 1 if self.config.in_common(name) else self.router.n_skills

    @property
    def own_names(self) -> list[str]:
        """The bank's parameters of which each skill has its own, unless the bank is another layer's."""
        return [name for name in self.bank_names if not (self.tied or self.config.in_common(name))]

    @property
    def skill_size(self) -> float:
        """What initial skills are scaled by: 1; where S of them are summed with weights of size 1, 1 / sqrt(S)."""
        return 1.0 if self.config.routing.convex else self.router.n_skills**-0.5

    @property
    def sides(self) -> tuple[int, int]:
        """Skills of factor A and of factor B."""
        return self.skills_of("bank_a"), self.skills_of("bank_b")

    def select_skills(self, keep: Sequence[int | None]) -> None:
        """Make skill i what skill `keep[i]` was, or a fresh one where that is None, unless the bank is another layer's."""
        for name in self.own_names:
            old = self.bank()[name]
            new = self.fresh(name, len(keep)).to(old)
            for i, k in enumerate(keep):
                if k is not None:
                    new[:, i] = old.data[:, k]
            self.register_parameter(name, nn.Parameter(new, requires_grad=old.requires_grad))

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """`adapted(x)`, by the routing of the batch at work; `base(x)` where the bank is disabled."""
        if self.state.disabled:
            return self.base(x, *more)
        if more:
            raise TargetError(
                f"layer {self.name!r} is a {type(self.base).__name__} that is called with more than x: expected a Linear; leave "
                "the layer out of targets"
            )
        if self.config.routing.by_token:
            return self.by_token(x)
        segments = self.segments(x)
        if self.layout is Layout.SEQUENCE_FIRST and segments.rows.shape[0] > 1:
            # Segments are runs of tokens, so that an example's tokens must lie together.
            return self.adapted(x.transpose(0, 1).contiguous(), segments).transpose(0, 1).contiguous()
        return self.adapted(x, segments)

    @abstractmethod
    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        """The layer's output for x [..., I], whose tokens are the segments' one after the other."""

    def by_token(self, x: Tensor) -> Tensor:
        """The layer's output where each token is routed by itself."""
        router = self.router
        assert isinstance(router, FusionRouter)
        y = self.base_output(x)
        h = y.reshape(-1, y.shape[-1])
        return y + router.fuse(h, self.updates(x.reshape(-1, x.shape[-1]), h)).view(y.shape)

    def updates(self, x: Tensor, h: Tensor) -> Tensor:
        """What each skill adds to the base layer's output h [N, O] of x [N, I], [N, S, O]."""
        raise NotImplementedError  # AdapterConfig refuses it for adapters that have none

    def segments(self, x: Tensor) -> Segments:
        """How the rows of `x` are routed, after a check that they are those of the batch."""
        state = self.state
        batch = state.current()
        router = self._router[0]
        if batch.source is not None:
            drawn = draw(batch.source, 1, self.sides, x.numel() // x.shape[-1]).to(x.device)
            return Segments(None, drawn[0, 0], drawn[0, 1])
        rows = batch.rows if batch.draws is None else batch.draws[router.index, 0]
        offsets = None
        if rows.shape[0] > 1:  # one routing serves any rows
            offsets = batch.offsets
            if batch.shape is None:
                self._check_rows(x, rows.shape[0], batch)
            else:
                self._check_packed(x, batch.shape)
        if batch.draws is not None:
            return Segments(None, rows, batch.draws[router.index, 1], offsets)
        weights = batch.blend(router(batch), router.even) if state.weights is None else state.weights[router.index]
        return Segments(weights, rows, None, offsets, router.transform(batch))

    def _check_packed(self, x: Tensor, shape: tuple[int, int]) -> None:
        """Raise TargetError, naming the layer, for an x that does not hold the tokens of packed rows in the layer's layout."""
        rows, length = shape
        if self.layout is Layout.TOKENS and x.dim() == 2:
            fits = x.shape[0] == rows * length
        else:
            expected = (length, rows) if self.layout is Layout.SEQUENCE_FIRST else shape
            fits = x.dim() == 3 and x.shape[:2] == expected and not (self.doubtful and rows == length)
        if fits:
            return
        raise TargetError(
            f"layer {self.name!r} got x {list(x.shape)} for packed rows of {rows} x {length} tokens: expected "
            f"{self.layout.value} of them; leave the layer out of targets, or leave packing out"
        )

    def _check_rows(self, x: Tensor, n: int, batch: RoutingBatch) -> None:
        """Raise TargetError, naming the layer, for an x that does not hold `n` examples in the layer's layout."""
        layout, shape = self.layout, x.shape
        if layout is Layout.TOKENS and len(shape) == 2:
            if shape[0] % n == 0:
                return
        elif layout is Layout.SEQUENCE_FIRST:
            if len(shape) == 3 and batch.fits(shape[1], n):
                return
        elif batch.fits(shape[0], n) and not (len(shape) == 2 and self.in_block):
            if len(shape) < 3 or shape[0] != shape[1]:
                # A compiled graph that held this value would be compiled again when it changes.
                if not torch.compiler.is_compiling():
                    self.doubtful = False
                return
            if not self.doubtful:
                return
        expected = f"{layout.value} with B = {n} rows of the batch"
        if batch.multiples != (1,):
            expected += f", times {' or '.join(map(str, batch.multiples))}"
        if self.doubtful:
            expected += ", and another length than B in the first mixed batch of a model that is not of transformers"
        raise TargetError(
            f"layer {self.name!r} got x {list(shape)} for {n} task ids: expected {expected}; leave the layer out of targets, or "
            "give all rows of a batch one task"
        )

    def base_output(self, x: Tensor) -> Tensor:
        """`base(x)`. Raises TargetError, naming the layer, where the base is no Linear in what it computes."""
        y: Tensor = self.base(x)
        if not isinstance(y, Tensor) or y.shape[:-1] != x.shape[:-1] or y.shape[-1] != self.out_features:
            made = list(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise TargetError(
                f"layer {self.name!r} is a {type(self.base).__name__} that turns {list(x.shape)} into {made}: expected a Linear "
                f"with {self.out_features} output features; leave the layer out of targets"
            )
        return y

    def factors(self) -> dict[str, Tensor]:
        """The bank as it computes, by the names of its parameters."""
        return dict(self.bank())

    def mixed(self, weights: Tensor | None) -> list[Tensor]:
        """The bank's parameters averaged by `weights` [U, H, S], heads joined: each [U, ...]; or, without weights, one row
        per skill. They are `ready`."""
        if weights is None:
            # Skills are drawn for one head only.
            return self.ready([bank.squeeze(0) for bank in self.factors().values()])
        together = self.together(weights)
        if together is not None:
            return together
        return self.ready(
            list(mix(list(self.factors().values()), self.side_of(*self.by_side(weights)), self.head_dims))
        )

    def ready(self, mixed: list[Tensor]) -> list[Tensor]:
        """What the layer computes with, of its parameters averaged for any number of rows."""
        return mixed

    def together(self, weights: Tensor | None) -> list[Tensor] | None:
        """What `mixed(weights)` would be, where it was mixed with that of the other layers of the call, in `mixed_dtype`."""
        state = self.state
        if state.factors is None or state.weights is None or weights is not state.weights[self.router.index]:
            return None
        return state.factors[self.name]

    def mixed_dtype(self) -> torch.dtype | None:
        """The dtype that the layer's kernels read its factors in; None for the bank's own."""
        return None

    def side_of(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """For each of the bank's parameters the one of factor A or B."""
        return [b if name.endswith("_b") else a for name in self.bank_names]

    def by_side(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weights [U, H, S] for factor A and for factor B; a factor that all skills share is taken whole."""
        if self.config.share == "none":
            return weights, weights
        whole = weights.new_ones(*weights.shape[:2], 1)
        return (weights, whole) if self.config.share == "up" else (whole, weights)

    def check_heads(self, **sizes: int) -> None:
        """Raise TargetError, naming the layer, where a size does not divide by the number of heads."""
        heads = self.router.n_heads
        for what, size in sizes.items():
            if size % heads:
                fitting = [h for h in range(1, 65) if size % h == 0]
                raise TargetError(
                    f"n_heads is {heads}, which does not divide the {size} {what} features of layer {self.name!r}: "
                    f"use one of {', '.join(map(str, fitting))}, or leave the layer out of targets"
                )

    def place(self) -> dict[str, Any]:
        """Where tensors beside the base layer belong, as keywords: its device, and float32 (float64 for float64)."""
        return place(self.base)

    def extra_repr(self) -> str:
        return f"{self.config.method}, n_heads={self.router.n_heads}, n_skills={self.router.n_skills}"


def place(base: nn.Module) -> dict[str, Any]:
    """Device and dtype of adapters beside `base`: its device; float64 for a float64 layer, otherwise float32."""
    first = next(chain(base.parameters(), base.buffers()), None)
    if first is None:  # a quantised layer may hide its weights
        return {"device": torch.device("cpu"), "dtype": torch.float32}
    return {"device": first.device, "dtype": accumulator(first.dtype)}


def _without_base(layer: nn.Module, tensors: dict[str, Any], prefix: str, _: Any) -> None:
    """Take "base." out of the names of a state_dict, so that it fits the model with and without a bank."""
    inner = prefix + "base."
    for key in [key for key in tensors if key.startswith(inner)]:
        tensors[prefix + key[len(inner) :]] = tensors.pop(key)


def _with_base(layer: nn.Module, tensors: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undo `_without_base` in a state_dict that is about to be loaded."""
    assert isinstance(layer, RoutedLayer)
    for key in [key for key in tensors if key.startswith(prefix)]:
        name = key[len(prefix) :]
        if name not in layer.bank_names:
            tensors[f"{prefix}base.{name}"] = tensors.pop(key)
