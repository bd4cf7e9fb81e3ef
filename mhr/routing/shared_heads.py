"""Heads that all tasks share beside heads of their own, as the Cross-Modal Adapter (arXiv 2211.09623) shares a part of its output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.ops import route
from mhr.routing.batch import RoutingBatch
from mhr.routing.router import Router, kept_rows, routers
from mhr.routing.skill import INIT_BOUND


@routers.register("shared-heads")
class SharedHeadsRouter(Router):
    """`w = p / (sum_s p + 1e-12)` with `p = sigmoid(Z)`, Z [H, S] of task t being `common` in the first k heads and its own in the rest:

        Z_t = [common; logits[t]]        common [k, S], logits [T, H - k, S], both ~ U(-1e-3, 1e-3)

    So k blocks of an adapter's input and output features are adapted alike for all tasks, and the others as MHR does. In the Cross-Modal
    Adapter the towers of two modalities are the tasks, `y = x + [U_own s(D x); U_share s(D x)]`, concatenated over output features; k is
    `SharedHeadsSettings.shared`. A task without a row is routed uniformly in all heads.
    """

    per_task = ("logits",)

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0):
        super().__init__(config, tasks, index)
        self.logits = nn.Parameter(self._fresh(len(tasks)))
        self.common = nn.Parameter(self.even.new_empty(self.settings.shared, self.n_skills))
        self.reset()

    def _fresh(self, n: int) -> Tensor:
        own = self.n_heads - self.settings.shared
        return self.even.new_empty(n, own, self.n_skills).uniform_(-INIT_BOUND, INIT_BOUND)

    def reset(self) -> None:
        with torch.no_grad():
            self.common.uniform_(-INIT_BOUND, INIT_BOUND)

    def forward(self, batch: RoutingBatch) -> Tensor:
        return self.together([self], batch)[0]

    @classmethod
    def together(cls, routers: Sequence[Router], batch: RoutingBatch) -> list[Tensor]:
        own = [router for router in routers if isinstance(router, cls)]
        tasks, n = batch.tasks, len(batch.tasks)
        common = torch.stack([router.common for router in own])[:, None].expand(-1, n, -1, -1)
        logits = torch.cat([common, torch.stack([router.logits[tasks.clamp(min=0)] for router in own])], 2)
        at = torch.arange(n * len(own), device=tasks.device)  # group by group
        weights = route(logits.flatten(0, 1), torch.where(tasks.repeat(len(own)) >= 0, at, -1))
        return list(weights.view(logits.shape).unbind())

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        super().set_tasks(tasks, keep)
        logits = kept_rows(self._fresh(len(tasks)), self.logits, keep)
        self.logits = nn.Parameter(logits, requires_grad=self.logits.requires_grad)
