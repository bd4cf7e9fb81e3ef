"""Uniform routing: weights 1/S for every task. What MHR-mu averages to; with one skill, a shared LoRA."""

from __future__ import annotations

from torch import Tensor

from mhr.routing.batch import RoutingBatch
from mhr.routing.router import Router, routers


@routers.register("uniform", "shared")
class UniformRouter(Router):
    """`w[u, h, s] = 1 / S`. `shared` is the same with S = 1: one adapter for all tasks."""

    def forward(self, batch: RoutingBatch) -> Tensor:
        return self.even.expand(batch.tasks.shape[0], *self.even.shape)
