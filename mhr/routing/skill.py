"""Poly and MHR: a learned row of logits per task and head. Poly (arXiv 2202.13914) is MHR (arXiv 2211.03831) with one head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.ops import route, route_all
from mhr.ops.route import EPSILON
from mhr.routing.batch import RoutingBatch
from mhr.routing.router import Router, kept_rows, routers

INIT_BOUND = 1e-3


@routers.register("mhr", "poly")
class SkillRouter(Router):
    """`w = p / (sum_s p + 1e-12)` with `p = sigmoid((Z[t] + noise) / temperature)`, Z `[T, H, S]`, Z ~ U(-1e-3, 1e-3).

    Without noise the temperature is not applied. With `straight_through`, p is rounded to 0 or 1 in the forward pass and
    keeps the gradient of the unrounded p; a head whose every skill is rounded to 0 is routed uniformly.
    """

    per_task = ("logits",)

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0):
        super().__init__(config, tasks, index)
        self.logits = nn.Parameter(self._fresh(len(tasks)))

    def _fresh(self, n: int) -> Tensor:
        return self.even.new_empty(n, self.n_heads, self.n_skills).uniform_(-INIT_BOUND, INIT_BOUND)

    def forward(self, batch: RoutingBatch) -> Tensor:
        noise = None if batch.noise is None else batch.noise[self.index]
        temperature = 1.0 if noise is None else self.config.temperature
        if self.config.straight_through:
            logits = self.logits[batch.tasks.clamp(min=0)]
            return self.or_even(rounded(logits, noise, temperature), batch.tasks)
        return route(self.logits, batch.tasks, noise, temperature)

    @classmethod
    def together(cls, routers: Sequence[Router], batch: RoutingBatch) -> list[Tensor]:
        config = routers[0].config
        if config.straight_through:
            return super().together(routers, batch)
        logits = [router.logits for router in routers if isinstance(router, cls)]
        return route_all(logits, batch.tasks, batch.noise, 1.0 if batch.noise is None else config.temperature)

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        super().set_tasks(tasks, keep)
        logits = kept_rows(self._fresh(len(tasks)), self.logits, keep)
        self.logits = nn.Parameter(logits, requires_grad=self.logits.requires_grad)


def rounded(logits: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
    """Weights [U, H, S] of `straight_through` for logits [U, H, S]: 0 or 1 before they are normalised, with the gradient of the
    sigmoid."""
    p = torch.sigmoid((logits if noise is None else logits + noise) / temperature)
    ones = (p >= 0.5).to(p.dtype)
    chosen = torch.where(ones.any(-1, keepdim=True), ones, 1.0)
    p = p + (chosen - p).detach()
    return p / (p.sum(-1, keepdim=True) + EPSILON)
