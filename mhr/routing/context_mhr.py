"""MHR from contexts: routing computed by a small network from what is known of a task, in place of a learnt row for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.ops import route
from mhr.routing.batch import RoutingBatch
from mhr.routing.contexts import Contexts
from mhr.routing.parameters import ParameterGroup
from mhr.routing.router import Router, routers
from mhr.routing.skill import INIT_BOUND, rounded


@routers.register("context-mhr")
class ContextRouter(Router):
    """`w = p / (sum_s p + 1e-12)` with `p = sigmoid((Z + noise) / temperature)`, and Z [U, H, S] of the tasks' contexts c [U, C]:

        Z[u, h, s] = W[h, s] . relu(V c_u + b) + d[h, s]

    V and b are those of `Contexts`, shared by all groups of layers; W [H, S, D] and d [H, S] are the group's own, since skill s of
    one layer has nothing to do with skill s of another. W, d ~ U(-1e-3, 1e-3), so that routing begins next to uniform, as MHR's
    does (arXiv 2211.03831), of which this is a generated form as in HyperFormer (arXiv 2106.04489). Noise, temperature and
    `straight_through` as of MHR. A task whose context is not known is routed uniformly.

    contexts  those of its bank; None makes some of its own
    """

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0, contexts: Contexts | None = None):
        super().__init__(config, tasks, index)
        # In a tuple, so that nn.Module does not register it: the bank owns it, if there is one.
        self._alone = contexts is None
        self._contexts = (contexts if contexts is not None else Contexts(config, tasks),)
        self.output = nn.Parameter(self.even.new_empty(*self.even.shape, self.settings.hidden))
        self.bias = nn.Parameter(self.even.new_empty(self.even.shape))
        self.reset()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        if self._alone:
            self.contexts._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def contexts(self) -> Contexts:
        return self._contexts[0]

    def reset(self) -> None:
        with torch.no_grad():
            for parameter in (self.output, self.bias):
                parameter.uniform_(-INIT_BOUND, INIT_BOUND)

    def forward(self, batch: RoutingBatch) -> Tensor:
        return self.together([self], batch)[0]

    @classmethod
    def together(cls, routers: Sequence[Router], batch: RoutingBatch) -> list[Tensor]:
        own = [router for router in routers if isinstance(router, cls)]
        first, tasks = own[0], batch.tasks
        logits = cls.logits(own, tasks)
        shape = logits.shape
        noise = None if batch.noise is None else batch.noise[[router.index for router in own]].flatten(0, 1)
        temperature = 1.0 if noise is None else first.config.temperature
        logits, known = logits.flatten(0, 1), first.contexts.known(tasks).repeat(len(own))  # group by group
        rows = torch.where(known, torch.arange(len(known), device=known.device), -1)
        if first.config.straight_through:
            weights = first.or_even(rounded(logits, noise, temperature), rows)
        else:
            weights = route(logits, rows, noise, temperature)
        return list(weights.view(shape).unbind())

    @staticmethod
    def logits(own: Sequence[ContextRouter], tasks: Tensor) -> Tensor:
        """Z [G, U, H, S] of G routers for the tasks int64 [U]."""
        output = torch.stack([router.output for router in own])  # [G, H, S, D]
        bias = torch.stack([router.bias for router in own])
        hidden = own[0].contexts.hidden(tasks)
        flat = hidden @ output.flatten(1, 2).transpose(1, 2)
        return flat.view(len(own), len(tasks), *bias.shape[1:]) + bias[:, None]

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        return [self.contexts.network_group(routing, [self.output, self.bias])]
