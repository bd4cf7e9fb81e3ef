"""The contract of a routing method: task ids in, weights over skills out. It knows no layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.registry import Registry
from mhr.routing.batch import RoutingBatch


class Router(nn.Module, ABC):
    """Routing weights `w [U, H, S]`, float32, for the distinct tasks of a batch; over S they sum to 1.

    A task id of -1 (a task that the table does not hold) gets the uniform weights 1/S, whatever the method.
    Subclasses are registered in `routers` under the name that `AdapterConfig.method` uses. `index` is the position of
    this router among the routers of its model: where the noise meant for it lies in `RoutingBatch.noise`.
    """

    needs_tasks = True
    """Whether the weights differ between tasks. If not, a model may be called without task ids."""

    skill_per_task = False
    """Whether skill s belongs to task s, so that a change of tasks changes the bank too."""

    even: Tensor

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0):
        super().__init__()
        self.config = config
        self.index = index
        self._resize(len(tasks))

    def _resize(self, n_tasks: int) -> None:
        n_heads, n_skills = self.config.n_heads, self.config.skills_for(n_tasks)
        self.n_tasks = n_tasks
        device = self.even.device if hasattr(self, "even") else None
        even = torch.full((n_heads, n_skills), 1.0 / n_skills, device=device)
        self.register_buffer("even", even, persistent=False)

    @abstractmethod
    def forward(self, batch: RoutingBatch) -> Tensor:
        """Weights [U, H, S] for `batch.tasks`."""

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        """Follow a change of the task list: new row i is old row `keep[i]`, or a fresh one where that is None."""
        self._resize(len(tasks))

    def table(self) -> Tensor:
        """Weights of every task, without noise and gradient, [T, H, S]."""
        tasks = torch.arange(self.n_tasks, device=self.even.device)
        with torch.no_grad():
            return self(RoutingBatch(rows=tasks, tasks=tasks))

    def or_even(self, weights: Tensor, tasks: Tensor) -> Tensor:
        """`weights` [U, H, S], with uniform ones where the task id is -1."""
        return torch.where((tasks >= 0)[:, None, None], weights, self.even)


class TableRouter(Router):
    """A router that looks its weights up in a table [T, H, S] which is never trained."""

    weights: Tensor

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0):
        super().__init__(config, tasks, index)
        self.register_buffer("weights", torch.stack([self.row(i, name) for i, name in enumerate(tasks)]))

    @abstractmethod
    def row(self, index: int, task: str) -> Tensor:
        """Weights [H, S] of task number `index`, called `task`."""

    def forward(self, batch: RoutingBatch) -> Tensor:
        return self.or_even(self.weights[batch.tasks.clamp(min=0)], batch.tasks)

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        super().set_tasks(tasks, keep)
        rows = [self.row(i, n) if k is None else self.weights[k] for i, (n, k) in enumerate(zip(tasks, keep, strict=True))]
        self.weights = torch.stack([row.to(self.even.device) for row in rows])


routers: Registry[type[Router]] = Registry("routing method")
