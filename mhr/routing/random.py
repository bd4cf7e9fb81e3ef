"""Fixed random routing: a control that asks whether learning the routing matters."""

from __future__ import annotations

import torch
from torch import Tensor

from mhr.routing.router import TableRouter, routers


@routers.register("random")
class RandomRouter(TableRouter):
    """`w = p / (sum_s p + 1e-12)`, `p = sigmoid(Z)`, Z ~ N(0, 1) drawn once per task, head and skill and never trained."""

    def row(self, index: int, task: str) -> Tensor:
        p = torch.sigmoid(torch.randn_like(self.even))
        return p / (p.sum(-1, keepdim=True) + 1e-12)
