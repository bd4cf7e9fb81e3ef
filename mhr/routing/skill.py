"""Poly and MHR: a learned row of logits per task and head. Poly (arXiv 2202.13914) is MHR (arXiv 2211.03831) with one head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.ops import route
from mhr.routing.batch import RoutingBatch
from mhr.routing.router import Router, routers

INIT_BOUND = 1e-3
EPSILON = 1e-12


@routers.register("mhr", "poly")
class SkillRouter(Router):
    """`w = p / (sum_s p + 1e-12)` with `p = sigmoid((Z[t] + noise) / temperature)`, Z `[T, H, S]`, Z ~ U(-1e-3, 1e-3).

    Without noise the temperature is not applied. With `straight_through`, p is rounded to 0 or 1 before it is
    normalised (a head may then use no skill at all) and the gradient is that of the unrounded p.
    """

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0):
        super().__init__(config, tasks, index)
        self.logits = nn.Parameter(self._fresh(len(tasks)))

    def _fresh(self, n: int) -> Tensor:
        return torch.empty(n, *self.even.shape, device=self.even.device).uniform_(-INIT_BOUND, INIT_BOUND)

    def forward(self, batch: RoutingBatch) -> Tensor:
        noise = None if batch.noise is None else batch.noise[self.index]
        temperature = self.config.temperature if noise is not None else 1.0
        if not self.config.straight_through:
            return route(self.logits, batch.tasks, noise, temperature)
        logits = self.logits[batch.tasks.clamp(min=0)]
        p = torch.sigmoid((logits if noise is None else logits + noise) / temperature)
        p = p + ((p >= 0.5).to(p.dtype) - p).detach()
        return self.or_even(p / (p.sum(-1, keepdim=True) + EPSILON), batch.tasks)

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        super().set_tasks(tasks, keep)
        fresh = self._fresh(len(tasks))
        for i, k in enumerate(keep):
            if k is not None:
                fresh[i] = self.logits.data[k]
        self.logits = nn.Parameter(fresh, requires_grad=self.logits.requires_grad)
