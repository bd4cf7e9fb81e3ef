"""The contract of a routing method: task ids in, weights over skills out. It knows no layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.ops.checks import accumulator
from mhr.registry import Registry
from mhr.routing.batch import RoutingBatch
from mhr.routing.contexts import Contexts
from mhr.routing.parameters import ParameterGroup
from mhr.routing.task_contexts import TaskContexts


class Router(nn.Module, ABC):
    """Routing weights `w [U, H, S]`, float32 or float64, for the distinct tasks of a batch; over S they sum to 1.

    A task id of -1 (a task that the table does not hold) gets the uniform weights 1/S, whatever the method. Where weights are no shares
    (`RoutingMethod.convex`) they may be any numbers, and such a task has zeros.
    Subclasses are registered in `routers` under the name of their row in `mhr.methods.ROUTING_METHODS`, which says what the
    method is; `settings` are those of its own. `index` is the position of this router among the routers of its model: where
    the noise meant for it lies in `RoutingBatch.noise`.
    """

    per_task: tuple[str, ...] = ()
    """Names of its tensors (in `state_dict`) whose first axis is the task. All others are shared by all tasks, and a new task
    finds them as they are."""

    former: tuple[str, ...] = ()
    """Names of tensors that an earlier release stored for it, and that say nothing."""

    even: Tensor
    """The uniform weights [H, S]; zeros where weights are no shares."""

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0):
        super().__init__()
        self.config = config
        self.settings: Any = config.own_settings()
        self.index = index
        self.register_buffer("even", torch.empty(0), persistent=False)
        self.resize(len(tasks))

    def resize(self, n_tasks: int) -> None:
        """Route over the skills of a bank for so many tasks. Its own tensors stay as they are."""
        self.n_tasks = n_tasks
        self.n_skills = self.config.skills_for(n_tasks)
        self.n_heads = self.config.n_heads or 1
        self.even = self.even.new_full((self.n_heads, self.n_skills), self._share)

    @property
    def _share(self) -> float:
        return 1.0 / self.n_skills if self.config.routing.convex else 0.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        # Routing tables are small, and weights that were rounded to bfloat16 no longer sum to 1: whatever half-precision
        # dtype the model is cast to, they stay in float32.
        def widest(t: Tensor) -> Tensor:
            new = fn(t)
            wide = accumulator(new.dtype)
            return new if not new.is_floating_point() or new.dtype == wide else t.to(new.device, wide)

        super()._apply(widest, recurse)
        self.even.fill_(self._share)  # which has more digits in a wider dtype
        return self

    @abstractmethod
    def forward(self, batch: RoutingBatch) -> Tensor:
        """Weights [U, H, S] for `batch.tasks`."""

    def transform(self, batch: RoutingBatch) -> Tensor | None:
        """Matrices [U, R, R] between factors A and B, `A <- A M_u`, for `batch.tasks`, where the method has such
        (`RoutingMethod.transforms`); None otherwise."""
        return None

    @classmethod
    def contexts_of(cls, config: AdapterConfig, tasks: Sequence[str], groups: Sequence[str]) -> TaskContexts | None:
        """The contexts that the routers of a bank share, where the method routes by such; groups: the names of its groups of layers."""
        return Contexts(config, tasks) if config.routing.contexts else None

    @classmethod
    def together(cls, routers: Sequence[Router], batch: RoutingBatch) -> list[Tensor]:
        """The weights of several routers of this class, one after the other."""
        return [router(batch) for router in routers]

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        """Follow a change of the task list: new row i is old row `keep[i]`, or a fresh one where that is None."""
        self.resize(len(tasks))

    def look(self) -> None:
        """Take note of what its tensors hold, after they were filled from elsewhere."""

    def reset(self) -> None:
        """Draw again what all tasks share. (Rows of tasks are drawn by `set_tasks`.)"""

    def shared_parameters(self) -> list[nn.Parameter]:
        """Its parameters that belong to no task."""
        return [parameter for name, parameter in self.named_parameters() if name not in self.per_task]

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        """How its parameters are trained. `routing` has the rate of routing logits (`router_lr`) and no weight decay; a network
        that all tasks share may have a group of its own, by another name."""
        return [routing.of(self.parameters())]

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

    per_task = ("weights",)
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
        old = self.weights
        self.weights = torch.stack(
            [self.row(i, name) if k is None else old[k] for i, (name, k) in enumerate(zip(tasks, keep, strict=True))]
        )


def kept_rows(fresh: Tensor, old: Tensor, keep: Sequence[int | None]) -> Tensor:
    """`fresh` [T, ...], in which row i is old row `keep[i]`, where that is not None."""
    at = [i for i, k in enumerate(keep) if k is not None]
    fresh[at] = old.detach()[[k for k in keep if k is not None]].to(fresh)
    return fresh


routers: Registry[type[Router]] = Registry("routing method")


def make_contexts(config: AdapterConfig, tasks: Sequence[str], groups: Sequence[str]) -> TaskContexts | None:
    """The contexts of a bank, None for a method without. groups: the names of its groups of layers, in their order."""
    return routers[config.method].contexts_of(config, tasks, groups)


def make_router(
    config: AdapterConfig,
    tasks: Sequence[str],
    index: int = 0,
    contexts: TaskContexts | None = None,
    sizes: tuple[int, int] = (0, 0),
) -> Router:
    """The router of a group of layers. contexts: those of its bank, where the method computes routing from contexts; sizes: (in,
    out) features of its one layer, where the method routes each token."""
    more: dict[str, Any] = {} if contexts is None else {"contexts": contexts}
    if config.routing.by_token:
        more["inputs"], more["outputs"] = sizes
    return routers[config.method](config, tasks, index, **more)
