"""HyperFormer and HyperFormer++ (arXiv 2106.04489): adapters generated from a vector of the task, and of the layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from mhr.config import AdapterConfig
from mhr.routing.batch import RoutingBatch
from mhr.routing.contexts import Contexts
from mhr.routing.parameters import ParameterGroup
from mhr.routing.projections import Projections
from mhr.routing.router import Router, routers


@routers.register("hyperformer", "hyperformer++")
class HyperRouter(Router):
    """`w[u, 0, s] = e[u, s]`, the vector e of `Projections` for the task and the router's layers: any numbers, no shares.

    A hypernetwork's last layer is linear in e, `U = reshape(G e)`: G is a bank of E directions, of which e takes a sum. So a bank that
    is routed by e generates adapters: of one layer (hyperformer), or of all layers of one shape, which share it (hyperformer++). A task
    without a row, or without a context, has e = 0 and no adapter.

    contexts  those of its bank; None makes some of its own
    """

    network: type[Projections] = Projections
    """What makes e of contexts."""

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0, contexts: Contexts | None = None):
        super().__init__(config, tasks, index)
        self._alone = contexts is None
        # In a tuple, so that nn.Module does not register it: the bank owns it, if there is one.
        self._contexts = (contexts if contexts is not None else self.network(config, tasks),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        if self._alone:
            self.contexts._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def contexts(self) -> Projections:
        found = self._contexts[0]
        assert isinstance(found, Projections)
        return found

    @classmethod
    def contexts_of(cls, config: AdapterConfig, tasks: Sequence[str], groups: Sequence[str]) -> Contexts | None:
        return cls.network(config, tasks, groups)

    def forward(self, batch: RoutingBatch) -> Tensor:
        return self.together([self], batch)[0]

    @classmethod
    def together(cls, routers: Sequence[Router], batch: RoutingBatch) -> list[Tensor]:
        own = [router for router in routers if isinstance(router, cls)]
        found = own[0].contexts.project(batch.tasks, slice(own[0].index, own[-1].index + 1))
        return list(found[:, :, None].unbind())

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        return []  # all of them are those of its contexts
