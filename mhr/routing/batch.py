"""What travels from a batch to every routed layer: which distinct tasks it holds and which rows belong to which."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mhr.errors import TaskError


@dataclass(frozen=True)
class RoutingBatch:
    """Routing of one batch, made once on the host by `AdapterBank.for_batch`; layers only read it.

    rows   int64 [G], segment of the batch -> position among the distinct tasks (0 .. U-1); segments are examples, or the
           whole batch (G = 1) where one routing serves all of it
    tasks  int64 [U], position -> row of the routing table; -1 is a task without a row, routed uniformly
    noise  float [n_routers, U, H, S], logistic noise of the relaxed Bernoulli, or None
    draws  int64 [n_routers, 2, G], the skills whose factors A and B each segment takes, where skills are drawn and not
           weighed (AdaMix); segments are then the whole batch or the examples. Or None
    source where each layer draws skills for each token, or None
    moments  float [U, C, C], what the tasks' contexts are made of where each batch makes its own (`TaskContexts.draw`), or None
    average  share u in [0, 1] of the uniform weights in the routing, a number, or None for 0
    examples   number of examples, or None where it is unknown
    offsets    int64 [G + 1] where segments are runs of tokens of their own lengths, in any number of rows: the first token of each,
               and the end. None where segments are equal
    shape      (rows, length) of such a call, or None
    mask   [rows, L], 1 where a token that the encoder was called with is one and 0 where it is padding; None where no layer asks for it
    multiples  how many rows each example may have in a call, side by side: (1,); under generate with 3 beams (1, 3), since
               the encoder reads an example once
    """

    rows: Tensor
    tasks: Tensor
    noise: Tensor | None = None
    draws: Tensor | None = None
    source: torch.Generator | None = None
    moments: Tensor | None = None
    average: Tensor | None = None
    examples: int | None = None
    offsets: Tensor | None = None
    shape: tuple[int, int] | None = None
    mask: Tensor | None = None
    multiples: tuple[int, ...] = (1,)

    @property
    def segments(self) -> int:
        """Equal segments that the rows of a call fall into: the examples, or 1 where one routing serves them all."""
        return (self.rows if self.draws is None else self.draws).shape[-1]

    @property
    def drawn(self) -> bool:
        """Whether skills are drawn, so that no weights are asked for."""
        return self.draws is not None or self.source is not None

    def blend(self, weights: Tensor, even: Tensor) -> Tensor:
        """`(1 - u) weights + u even`: weights [U, H, S] of a router, and its uniform ones [H, S]."""
        return weights if self.average is None else torch.lerp(weights, even, self.average.to(weights.dtype))

    def fits(self, rows: int, examples: int) -> bool:
        """Whether a call with so many rows may be one for so many examples."""
        return any(rows == examples * multiple for multiple in self.multiples)

    def over(self, *multiples: int) -> RoutingBatch:
        """The same examples, for calls in which each has as many rows, side by side, as one of `multiples` says."""
        return dataclasses.replace(self, multiples=multiples)

    def masked(self, mask: Tensor) -> RoutingBatch:
        """The same examples, in a call whose encoder has these tokens, [rows, L]."""
        return dataclasses.replace(self, mask=mask)

    def packed(self, offsets: Tensor, shape: tuple[int, int]) -> RoutingBatch:
        """The same examples, for calls in which they stand one behind the other in rows [rows, length] = `shape`; offsets [G + 1]."""
        return dataclasses.replace(self, offsets=offsets, shape=shape)

    def take(self, index: Tensor) -> RoutingBatch:
        """The routing of the segments `index` [G'] in their order: examples may come several times, as their answers do."""

        def taken(segments: Tensor) -> Tensor:
            return segments if segments.shape[-1] == 1 else segments[..., index]

        draws = None if self.draws is None else taken(self.draws)
        return dataclasses.replace(self, rows=taken(self.rows), draws=draws, examples=index.shape[0])


class RoutingState:
    """The routing that the layers of one model work under: of the model's call under way, or of the block around it.

    weights   of every router for the call under way, by the routers' index, where they were computed together; a layer
              that finds none (its block is computed again, or it was called without the model) asks its router
    factors   of every layer for the call under way, by the layers' names, where they were mixed together
    shared    what layers that read the same x compute for one another in it; see `mhr.layers.siblings`
    carried   what recurrent adapters hand to the next layer in it: name of the bank -> [..., R]; see `mhr.layers.depth`
    prefixes  what gated prefixes have for the attention that comes next: name of the layer -> keys, values, gates
    drops_cache  whether the call under way is to return no cache, although it is given one (`mhr.layers.virtual`)
    disabled  whether the layers answer as their base layers do; see `mhr.disabled`
    """

    def __init__(self) -> None:
        self.batch: RoutingBatch | None = None
        self.block: RoutingBatch | None = None
        self.weights: list[Tensor] | None = None
        self.factors: dict[str, list[Tensor]] | None = None
        self.shared: Any = None
        self.carried: dict[str, Tensor] = {}
        self.prefixes: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.drops_cache = False
        self.disabled = False

    def current(self) -> RoutingBatch:
        if self.batch is None:
            raise TaskError(
                "the model was called without task ids: pass task_ids=[...] (one name per example) to the model or to "
                "generate, or call it inside `with model.mhr.routing([...]):`"
            )
        return self.batch

    def enter(self, batch: RoutingBatch | None) -> None:
        """A call of the model begins: route by `batch`, or as the block around it says where that is None."""
        self.batch = self.block if batch is None else batch
        self.carried, self.prefixes = {}, {}

    def leave(self) -> None:
        """The call ends."""
        self.batch, self.weights, self.factors, self.shared, self.carried = self.block, None, None, None, {}
        self.prefixes, self.drops_cache = {}, False

    @contextmanager
    def use(
        self,
        batch: RoutingBatch | None,
        disabled: bool | None = None,
        together: tuple[list[Tensor] | None, dict[str, list[Tensor]] | None, Any] = (None, None, None),
        carried: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Iterator[None]:
        """Route by `batch` inside the block (or, if `disabled`, by nothing), and as before after it, also when it raises.

        together: weights, factors and shared, where the block belongs to a call that has computed them; carried: what the layers before
        have handed on in it.
        """
        before = self.batch, self.block, self.weights, self.factors, self.shared, self.carried, self.disabled
        self.batch = self.block = batch
        self.weights, self.factors, self.shared = together
        self.carried = dict(carried)
        if disabled is not None:
            self.disabled = disabled
        try:
            yield
        finally:
            self.batch, self.block, self.weights, self.factors, self.shared, self.carried, self.disabled = before
