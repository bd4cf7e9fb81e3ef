"""Private routing: each task has a skill of its own, S = T."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mhr.routing.batch import RoutingBatch
from mhr.routing.router import Router, routers


@routers.register("private")
class PrivateRouter(Router):
    """`w[t, h, s] = 1 where s = t, else 0`: one LoRA per task, nothing shared.

    The bank's skills move with the tasks, so every task's skill is the one at its own position. A table of these weights would have T^2
    of them: they are made for the tasks of a batch.
    """

    former = ("weights",)

    def forward(self, batch: RoutingBatch) -> Tensor:
        chosen = batch.tasks.clamp(min=0)[:, None, None].expand(-1, self.n_heads, 1)
        one = self.even.new_zeros(len(batch.tasks), *self.even.shape).scatter(2, chosen, 1.0)
        return self.or_even(one, batch.tasks)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.former:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
