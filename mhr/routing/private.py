"""Private routing: each task has a skill of its own, S = T."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mhr.routing.router import TableRouter, routers


@routers.register("private")
class PrivateRouter(TableRouter):
    """`w[t, h, s] = 1 where s = t, else 0`: one LoRA per task, nothing shared."""

    def row(self, index: int, task: str) -> Tensor:
        one = torch.zeros_like(self.even)
        one[:, index] = 1.0
        return one

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        # The bank's skills move with the tasks, so every task's skill is the one at its own position again.
        super().set_tasks(tasks, [None] * len(tasks))
