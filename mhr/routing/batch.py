"""What travels from a batch to every routed layer: which distinct tasks it holds and which rows belong to which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from mhr.errors import TaskError


@dataclass(frozen=True, slots=True)
class RoutingBatch:
    """Routing of one batch, made once on the host by `AdapterBank.for_batch`; layers only read it.

    rows   int64 [B], example -> position among the distinct tasks (0 .. U-1)
    tasks  int64 [U], position -> row of the routing table; -1 is a task without a row, routed uniformly
    noise  float [n_routers, U, H, S], logistic noise of the relaxed Bernoulli, or None
    """

    rows: Tensor
    tasks: Tensor
    noise: Tensor | None = None


class RoutingState:
    """The batch that the layers of one model are working on. Plain Python: it holds no parameters."""

    def __init__(self) -> None:
        self.batch: RoutingBatch | None = None

    def current(self) -> RoutingBatch:
        if self.batch is None:
            raise TaskError(
                "the model was called without task ids: pass task_ids=[...] (one name per example) to the model or to "
                "generate, or call it inside `with model.mhr.routing([...]):`"
            )
        return self.batch

    @contextmanager
    def use(self, batch: RoutingBatch | None) -> Iterator[None]:
        """Route by `batch` inside the block, and as before after it, also when the block raises."""
        before, self.batch = self.batch, batch
        try:
            yield
        finally:
            self.batch = before
