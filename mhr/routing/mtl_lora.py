"""MTL-LoRA (arXiv 2410.09437): HydraLoRA's mixing by task, and a matrix of each task's own between the factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.routing.batch import RoutingBatch
from mhr.routing.hydra import HydraRouter
from mhr.routing.parameters import ParameterGroup
from mhr.routing.router import kept_rows, routers


@routers.register("mtl-lora")
class MtlLoraRouter(HydraRouter):
    """Weights `w` as of `HydraRouter`, and a matrix `Lambda_t [R, R]` of each task, by which a layer adds

        (alpha / R) sum_s w[t, s] (x A Lambda_t) B[s]

    transforms  Lambda [T, R, R], the identity for a task that trains yet; between the factors, so that a task stays one LoRA, with
                A Lambda_t for its A. A task without a row has the identity.
    """

    per_task = ("logits", "transforms")

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0):
        super().__init__(config, tasks, index)
        self.transforms = nn.Parameter(self._identity().repeat(len(tasks), 1, 1))

    def _identity(self) -> Tensor:
        return torch.eye(self.config.rank, dtype=self.even.dtype, device=self.even.device)

    def transform(self, batch: RoutingBatch) -> Tensor:
        found = self.transforms[batch.tasks.clamp(min=0)]
        identity = self._identity()
        return batch.blend(torch.where((batch.tasks >= 0)[:, None, None], found, identity), identity)

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        super().set_tasks(tasks, keep)
        old = self.transforms
        new = kept_rows(self._identity().repeat(len(tasks), 1, 1), old, keep)
        self.transforms = nn.Parameter(new, requires_grad=old.requires_grad)

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        return [routing.of([self.logits]), ParameterGroup("transforms", [self.transforms], self.settings.transform_lr)]
