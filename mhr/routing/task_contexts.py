"""What a bank knows of its tasks beside their names: a row for each, from which the task is routed or its adapter is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.ops.checks import accumulator
from mhr.routing.parameters import ParameterGroup


class TaskContexts(nn.Module, ABC):
    """A row of V numbers for each of a bank's tasks, and the network on them that all its routers share.

    vectors  [T, V]; a row of zeros is a task whose context is not known. Trained where contexts are learnt, and in an adaptation, whose
             task's row of routing they are
    nearest  new task -> the task whose context it was given, where that is how new tasks begin

    The bank of a model owns it. Like routing tables it stays in float32 whatever half-precision dtype the model is cast to.
    """

    per_task = ("vectors",)
    """As of `Router.per_task`."""

    takes_examples = False
    """Whether it learns from examples of the tasks that a bank is trained on, which it does not store (`put` with center)."""

    vectors: nn.Parameter

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], size: int):
        super().__init__()
        self.settings: Any = config.own_settings()
        self.tasks = list(tasks)
        self.vectors = nn.Parameter(self._fresh(torch.zeros(len(tasks), size)), requires_grad=self.learnt)
        self._known = [self.learnt] * len(tasks)
        self.nearest: dict[str, str] = {}
        self.register_load_state_dict_post_hook(_look)

    @property
    def learnt(self) -> bool:
        """Whether contexts are trained with the bank, and not computed from what is known of a task."""
        return bool(self.settings.context == "learnt")

    @property
    def embedded(self) -> bool:
        """Whether the context of a new task is found by embeddings of what is known of it."""
        return not self.learnt

    def trained(self) -> list[nn.Parameter]:
        """What all tasks share and trains with the bank."""
        return [parameter for name, parameter in self.named_parameters() if name not in self.per_task]

    def train_in(self, adapted: bool) -> None:
        """Ask for the gradients that a run asks for, of a bank or, if adapted, of an adaptation that trains all it can."""
        self.requires_grad_(True)
        self.vectors.requires_grad_(self.learnt or adapted)

    def own_loss(self, generator: torch.Generator) -> Tensor | None:
        """A loss of the contexts' own, which a step of training adds to that of its batch; None where there is none. generator: of what it
        draws."""
        return None

    def _fresh(self, zeros: Tensor) -> Tensor:
        """Contexts [n, V] of new tasks, in place of so many zeros: drawn where they are learnt, and not known otherwise."""
        return zeros.normal_() if self.learnt else zeros

    @abstractmethod
    def reset(self) -> None:
        """Draw the network again. (Contexts are drawn by `set_tasks`, or put.)"""

    def measured_as(self, stored: Mapping[str, Tensor]) -> None:
        """Have what new contexts are measured from of stored contexts, by the names of `state_dict`, where there is such."""
        return

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TaskContexts:
        def widest(t: Tensor) -> Tensor:
            new = fn(t)
            wide = accumulator(new.dtype)
            return new if not new.is_floating_point() or new.dtype == wide else t.to(new.device, wide)

        super()._apply(widest, recurse)
        return self

    @abstractmethod
    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        """How its parameters are trained, as `Router.parameter_groups`."""

    def row_group(self, routing: ParameterGroup) -> ParameterGroup:
        """How contexts are trained: they stand for rows of routing, but their V numbers of size 1 move a logit together, so that they have
        a tenth of the rate."""
        return ParameterGroup("contexts", [self.vectors], routing.lr / 10)

    def network_group(self, routing: ParameterGroup, parameters: Iterable[nn.Parameter]) -> ParameterGroup:
        """Parameters of the network, be they shared or a router's own, as they are trained."""
        return ParameterGroup("network", list(parameters), self.settings.network_lr, routing.weight_decay)

    # ---- what is known of tasks ----------------------------------------------------------------------------------

    def known(self, tasks: Tensor) -> Tensor:
        """bool [U]: whether a task of int64 [U] is in the table with a context."""
        return (tasks >= 0) & self.vectors.detach()[tasks.clamp(min=0)].any(-1)

    def knows(self, row: int) -> bool:
        """Whether the context of a row of the table is known. It is answered on the host."""
        return self._known[row]

    def look(self) -> None:
        """Take note of what `vectors` holds, after it was filled from elsewhere: once, since it waits for the device."""
        self._known = self.vectors.detach().any(-1).tolist()

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        """Follow a change of the task list, as `Router.set_tasks`."""
        old, known = self.vectors, self._known
        vectors = self._fresh(old.detach().new_zeros(len(tasks), old.shape[1]))
        at = [i for i, k in enumerate(keep) if k is not None]
        vectors[at] = old.detach()[[k for k in keep if k is not None]]
        self.tasks = list(tasks)
        self.vectors = nn.Parameter(vectors, requires_grad=old.requires_grad)
        self._known = [self.learnt if k is None else known[k] for k in keep]

    @abstractmethod
    def put(self, embeddings: Mapping[str, Tensor], center: bool = False) -> None:
        """Give tasks their contexts, of embeddings of what is known of them, any float dtype.

        center  they are those of all tasks that the bank is trained on

        Raises TaskError for an unknown task and embeddings that do not fit; nothing is then changed.
        """

    def draw(self, rows: Sequence[int], generator: torch.Generator | None) -> Tensor | None:
        """What the contexts of a batch are made of, where each batch makes its own, for these rows of the table: drawn by `generator`, or, without
        one, always the same. None where contexts are as stored."""
        return None


def _look(contexts: TaskContexts, _: object) -> None:
    """Once a state dict was loaded."""
    if not contexts.vectors.is_meta:
        contexts.look()
