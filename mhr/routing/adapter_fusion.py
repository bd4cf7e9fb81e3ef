"""AdapterFusion (arXiv 2005.00247): each token attends to what finished adapters make of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.routing.batch import RoutingBatch
from mhr.routing.router import Router, routers

QUERY_STD = 0.02
VALUE_STD = 1e-6


@routers.register("adapter-fusion")
class FusionRouter(Router):
    """Attention of one layer over the updates u [N, S, O] that its S adapters make of N tokens, for its output h [N, O] without them:

        p[n] = softmax_s (h[n] Q) . (u[n, s] K),    h[n] <- h[n] + sum_s p[n, s] u[n, s] V

    query (Q), key (K), value (V) [O, O]: Q, K ~ N(0, 0.02), V the identity with N(0, 1e-6) added. They are trained by mhr route on all tasks
    together, the adapters being frozen.

    outputs  O, the features of the layer's output
    """

    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0, inputs: int = 0, outputs: int = 0):
        super().__init__(config, tasks, index)
        for name in ("query", "key", "value"):
            self.register_parameter(name, nn.Parameter(self.even.new_empty(outputs, outputs)))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        for parameter in (self.query, self.key):
            parameter.normal_(0.0, QUERY_STD)
        self.value.normal_(0.0, VALUE_STD).add_(torch.eye(len(self.value)).to(self.value))

    def fuse(self, h: Tensor, updates: Tensor) -> Tensor:
        """What is added to h [N, O], of the updates [N, S, O], in the dtype of h."""
        with torch.autocast(h.device.type, enabled=False):
            u = updates.to(self.query.dtype)
            scores = torch.einsum("no,nso->ns", h.to(u.dtype) @ self.query, u @ self.key)
            # The values are linear in the updates: one product with V a token, and not one for each adapter.
            return (torch.einsum("ns,nso->no", scores.softmax(-1), u) @ self.value).to(h.dtype)

    def forward(self, batch: RoutingBatch) -> Tensor:
        """1/S for all tasks, for a task says nothing here; what layers ask is `fuse`."""
        return self.even.expand(batch.tasks.shape[0], *self.even.shape)
