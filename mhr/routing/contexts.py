"""Contexts: a vector for each task, from which routers compute how the task is routed, a task that was never trained on as well."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.errors import TaskError
from mhr.routing.parameters import ParameterGroup
from mhr.routing.task_contexts import TaskContexts

SMALLEST = 1e-6
"""Length below which what is left of an embedding without the mean of all is rounding and distinguishes nothing."""


class Contexts(TaskContexts):
    """The contexts c [T, C] of a bank's tasks, and what all its routers share of the network on them.

        c_t = sqrt(C) (e_t - m) / |e_t - m|    of an embedding e_t [C] of the task, taken at length 1, and the mean m of the
                                               training tasks' ones, which the embeddings of a pooled encoder have in common
        c_t ~ N(0, 1)                          where a context is learnt (`ContextSettings.context`)
        hidden(t) = relu(V c_t + b)            [U, D]

    vectors  [T, C], the contexts
    center   [C], the mean m
    first    V [D, C] and b [D]
    """

    center: Tensor

    def __init__(self, config: AdapterConfig, tasks: Sequence[str]):
        size = config.own_settings().width
        super().__init__(config, tasks, size)
        self.register_buffer("center", torch.zeros(size))
        self.first = nn.Linear(size, self.settings.hidden)

    @property
    def size(self) -> int:
        """C, the length of a context."""
        return self.vectors.shape[1]

    def reset(self) -> None:
        self.first.reset_parameters()

    def measured_as(self, stored: Mapping[str, Tensor]) -> None:
        self.center.copy_(stored["center"])

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        return [self.network_group(routing, self.first.parameters()), self.row_group(routing)]

    def hidden(self, tasks: Tensor) -> Tensor:
        """relu(V c + b) [U, D] of the tasks int64 [U]; of a task of -1 that of the first one, which `known` tells apart."""
        return torch.relu(self.first(self.vectors[tasks.clamp(min=0)]))

    @torch.no_grad()
    def put(self, embeddings: Mapping[str, Tensor], center: bool = False) -> None:
        """Make the contexts of tasks of embeddings [C], any float dtype.

        center  take their mean for m, as for the tasks that a bank is trained on; otherwise m stays as it is

        Raises TaskError for an unknown task, one of another length, and one that is not finite or no different from m; nothing is
        then changed.
        """
        rows = {task: row for row, task in enumerate(self.tasks)}
        units = {task: self._unit(task, embedding, rows) for task, embedding in embeddings.items()}
        mean = torch.stack(list(units.values())).mean(0) if center and len(units) > 1 else self.center
        contexts = {}
        for task, unit in units.items():
            left = unit - mean
            length = left.norm()
            if length < SMALLEST:
                raise TaskError(
                    f"the context of task {task!r} is the mean of those of all training tasks, so that nothing distinguishes it: give "
                    "tasks that differ descriptions that differ"
                )
            contexts[task] = left / length * self.size**0.5
        self.center.copy_(mean)
        for task, context in contexts.items():
            self.vectors.data[rows[task]] = context
            self._known[rows[task]] = True

    def _unit(self, task: str, embedding: Tensor, rows: Collection[str]) -> Tensor:
        """The embedding at length 1. rows: the tasks of the bank."""
        if task not in rows:
            raise TaskError(f"the context of task {task!r} is given, which is no task of the bank: add it first")
        if embedding.shape != self.center.shape:
            raise TaskError(
                f"the context of task {task!r} has shape {tuple(embedding.shape)}, expected ({self.size},): take the encoder that the bank "
                "was trained with"
            )
        wide = embedding.detach().to(self.center)
        if not (wide.isfinite().all() and wide.any()):
            raise TaskError(f"the context of task {task!r} is zero or not finite, expected the embedding of some text")
        return wide / wide.norm()
