"""Contexts: a vector for each task, from which routers compute how the task is routed, a task that was never trained on as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.errors import TaskError
from mhr.ops.checks import accumulator
from mhr.routing.parameters import ParameterGroup

SMALLEST = 1e-6
"""Length below which what is left of an embedding without the mean of all is rounding and distinguishes nothing."""


class Contexts(nn.Module):
    """The contexts c [T, C] of a bank's tasks, and what all its routers share of the network on them.

        c_t = sqrt(C) (e_t - m) / |e_t - m|    of an embedding e_t [C] of the task, taken at length 1, and the mean m of the
                                               training tasks' ones, which the embeddings of a pooled encoder have in common
        c_t ~ N(0, 1)                          where a context is learnt (`ContextSettings.context`)
        hidden(t) = relu(V c_t + b)            [U, D]

    vectors  [T, C], the contexts; a row of zeros is a task whose context is not known. Trained where they are learnt, and in an
             adaptation, whose task's row of routing they are
    center   [C], the mean m
    first    V [D, C] and b [D]

    The bank of a model owns it. Like routing tables it stays in float32 whatever half-precision dtype the model is cast to.
    """

    per_task = ("vectors",)
    """As of `Router.per_task`."""

    vectors: nn.Parameter
    center: Tensor

    def __init__(self, config: AdapterConfig, tasks: Sequence[str]):
        super().__init__()
        self.settings = config.own_settings()
        self.tasks = list(tasks)
        size = self.settings.width
        self.register_buffer("center", torch.zeros(size))
        self.first = nn.Linear(size, self.settings.hidden)
        self.vectors = nn.Parameter(self._fresh(len(tasks)), requires_grad=self.learnt)
        self._known = [self.learnt] * len(tasks)
        self.nearest: dict[str, str] = {}
        """New task -> the task whose context it was given, where that is how new tasks begin."""

    @property
    def learnt(self) -> bool:
        """Whether contexts are trained with the bank, and not computed from what is known of a task."""
        return self.settings.context == "learnt"

    @property
    def embedded(self) -> bool:
        """Whether the context of a new task is found by embeddings of what is known of it."""
        return not self.learnt

    def trained(self) -> list[nn.Parameter]:
        """What all tasks share and trains with the bank."""
        return [parameter for name, parameter in self.named_parameters() if name not in self.per_task]

    def own_loss(self, generator: torch.Generator) -> Tensor | None:
        """A loss of the contexts' own, which a step of training adds to that of its batch; None where there is none. generator: of what it
        draws."""
        return None

    @property
    def size(self) -> int:
        """C, the length of a context."""
        return self.vectors.shape[1]

    def _fresh(self, n: int) -> Tensor:
        """Contexts of new tasks: drawn where they are learnt, and not known otherwise."""
        fresh = self.center.new_zeros(n, len(self.center))
        return fresh.normal_() if self.learnt else fresh

    def reset(self) -> None:
        """Draw the network again. (Contexts are drawn by `set_tasks`, or put.)"""
        self.first.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Contexts:
        def widest(t: Tensor) -> Tensor:
            new = fn(t)
            wide = accumulator(new.dtype)
            return new if not new.is_floating_point() or new.dtype == wide else t.to(new.device, wide)

        super()._apply(widest, recurse)
        return self

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        """How its parameters are trained, as `Router.parameter_groups`. Contexts stand for rows of routing, but their C numbers of size 1
        move a logit together, so that they have a tenth of the rate."""
        contexts = ParameterGroup("contexts", [self.vectors], routing.lr / 10)
        return [self.network_group(routing, self.first.parameters()), contexts]

    def network_group(self, routing: ParameterGroup, parameters: Iterable[nn.Parameter]) -> ParameterGroup:
        """Parameters of the network, be they shared or a router's own, as they are trained."""
        return ParameterGroup("network", list(parameters), self.settings.network_lr, routing.weight_decay)

    # ---- what routers ask ----------------------------------------------------------------------------------------

    def hidden(self, tasks: Tensor) -> Tensor:
        """relu(V c + b) [U, D] of the tasks int64 [U]; of a task of -1 that of the first one, which `known` tells apart."""
        return torch.relu(self.first(self.vectors[tasks.clamp(min=0)]))

    def known(self, tasks: Tensor) -> Tensor:
        """bool [U]: whether a task of int64 [U] is in the table with a context."""
        return (tasks >= 0) & self.vectors.detach()[tasks.clamp(min=0)].any(-1)

    # ---- what is known of tasks ----------------------------------------------------------------------------------

    def knows(self, row: int) -> bool:
        """Whether the context of a row of the table is known. It is answered on the host."""
        return self._known[row]

    def look(self) -> None:
        """Take note of what `vectors` holds, after it was filled from elsewhere: once, since it waits for the device."""
        self._known = self.vectors.detach().any(-1).tolist()

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        """Follow a change of the task list, as `Router.set_tasks`."""
        old, known = self.vectors, self._known
        vectors = self._fresh(len(tasks))
        for i, k in enumerate(keep):
            if k is not None:
                vectors[i] = old.data[k]
        self.tasks = list(tasks)
        self.vectors = nn.Parameter(vectors, requires_grad=old.requires_grad)
        self._known = [self.learnt if k is None else known[k] for k in keep]

    @torch.no_grad()
    def put(self, embeddings: Mapping[str, Tensor], center: bool = False) -> None:
        """Make the contexts of tasks of embeddings [C], any float dtype.

        center  take their mean for m, as for the tasks that a bank is trained on; otherwise m stays as it is

        Raises TaskError for an unknown task, one of another length, and one that is not finite or no different from m; nothing is
        then changed.
        """
        units = {task: self._unit(task, embedding) for task, embedding in embeddings.items()}
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
            row = self.tasks.index(task)
            self.vectors.data[row] = context
            self._known[row] = True

    def _unit(self, task: str, embedding: Tensor) -> Tensor:
        """The embedding at length 1."""
        if task not in self.tasks:
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
