"""HydraLoRA (arXiv 2404.19245) and MTL-LoRA's mixing (arXiv 2410.09437): one factor A, several B, weighed by a row of logits a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.ops import route
from mhr.routing.batch import RoutingBatch
from mhr.routing.router import Router, kept_rows, routers
from mhr.routing.skill import INIT_BOUND


@routers.register("hydra")
class HydraRouter(Router):
    """`w = softmax(Z[t] / tau)` over skills, or with `weights: sigmoid` `p / (sum_s p + 1e-12)`, `p = sigmoid(Z[t])`; Z [T, H, S].

    The bank shares factor A (`AdapterConfig.share`), so that a layer adds `(alpha / R) sum_s w[s] (x A) B[s]`. All B are 0 at the
    beginning, and A is one: only weights that differ let them come apart, so Z ~ N(0, 1) for the tasks that a bank is made for. A
    task that comes later begins next to uniform, Z ~ U(-1e-3, 1e-3). HydraLoRA weighs by token, from the input; here, as in
    MTL-LoRA, by task, so that a task stays one LoRA.
    """

    per_task: tuple[str, ...] = ("logits",)

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0):
        super().__init__(config, tasks, index)
        self.logits = nn.Parameter(self.even.new_empty(len(tasks), *self.even.shape).normal_())

    def forward(self, batch: RoutingBatch) -> Tensor:
        if self.settings.weights == "sigmoid":
            return route(self.logits, batch.tasks)
        weights = torch.softmax(self.logits[batch.tasks.clamp(min=0)] / self.settings.tau, -1)
        return self.or_even(weights, batch.tasks)

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        super().set_tasks(tasks, keep)
        logits = kept_rows(
            self.even.new_empty(len(tasks), *self.even.shape).uniform_(-INIT_BOUND, INIT_BOUND), self.logits, keep
        )
        self.logits = nn.Parameter(logits, requires_grad=self.logits.requires_grad)
