"""GenerativeAdapter (arXiv 2411.05877): LoRAs generated from the hidden states of a task's shots, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhr.config import AdapterConfig
from mhr.errors import TaskError
from mhr.routing.batch import RoutingBatch
from mhr.routing.parameters import ParameterGroup
from mhr.routing.router import Router, routers
from mhr.routing.task_contexts import TaskContexts


class OuterProducts(TaskContexts):
    """The matrices S [T, G, R, R] of a bank's tasks for G groups of layers, and what generates them:

        S[t, g] = M / |M|_F,    M = sum_i (K_g h_i) (V_g h_i)^T

    over the tokens i of the task's shots; h_i [C] is a token's last hidden state in the base model without its bank, divided by the
    root of its mean square. The paper calls K_g, V_g [R, C] A2 and A3; they are drawn from N(0, 1 / C), and only their directions count.
    In the paper h_i is what each layer reads in the model that is adapted so far; here it is the same for all layers, and read once.

    vectors  [T, G * R * R], S of each task. While there are states it is that of the first shots, as K and V stand, whenever it is stored
    keys, values  K and V [G, R, C], which train while there are states
    states   task -> [N, L, C], the h_i of N shots of each training task, in the memory of the host, with zeros behind shots of fewer
             tokens; from `put`. A training step draws some of them; otherwise the first ones count. None where S is as stored, as after
             a change of the tasks
    """

    takes_examples = True

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], groups: Sequence[str] = ("",)):
        super().__init__(config, tasks, len(groups) * config.rank**2)
        self.shape = len(groups), config.rank, config.rank
        shape = len(groups), config.rank, self.settings.width
        self.keys, self.values = (nn.Parameter(torch.empty(shape), requires_grad=False) for _ in range(2))
        self.states: dict[str, Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        for parameter in (self.keys, self.values):
            nn.init.normal_(parameter, std=self.settings.width**-0.5)

    def trained(self) -> list[nn.Parameter]:
        return [] if self.states is None else [self.keys, self.values]

    def train_in(self, adapted: bool) -> None:
        self.requires_grad_(not adapted)
        self.vectors.requires_grad_(adapted)

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        return [self.network_group(routing, [self.keys, self.values]), self.row_group(routing)]

    # ---- what routers ask ----------------------------------------------------------------------------------------

    def matrices(self, batch: RoutingBatch, group: int) -> Tensor:
        """S [U, R, R] of a group for `batch.tasks`, with the gradient of what it is made of: zeros for a task of -1 or without a context."""
        if batch.moments is None:
            found = self.vectors[batch.tasks.clamp(min=0)].unflatten(1, self.shape)[:, group]
        else:
            found = self.generated(batch.moments, slice(group, group + 1))[:, 0]
        return torch.where((batch.tasks >= 0)[:, None, None], found, 0.0)

    def generated(self, moments: Tensor, groups: slice) -> Tensor:
        """S [U, G, R, R] for moments [U, C, C]: since K and V are linear, sum_i (K h_i) (V h_i)^T = K (sum_i h_i h_i^T) V^T."""
        with torch.autocast(moments.device.type, enabled=False):
            m = self.keys[groups] @ moments[:, None] @ self.values[groups].transpose(1, 2)
            return F.normalize(m.flatten(2), dim=-1).view_as(m)

    # ---- what is known of tasks ----------------------------------------------------------------------------------

    def draw(self, rows: Sequence[int], generator: torch.Generator | None) -> Tensor | None:
        """Moments [U, C, C], the mean of h_i h_i^T over the tokens of each task's shots; zeros for a row of -1. The shots that a generator
        draws of a task do not depend on the others of the batch."""
        if self.states is None:
            return None
        shots: int = self.settings.shots
        most = max(map(len, self.states.values()))
        lots = None if generator is None else torch.rand(len(self.tasks), most, generator=generator)
        size = self.keys.shape[-1]
        found = self.keys.detach().new_zeros(len(rows), size, size)
        for i, row in enumerate(rows):
            if row >= 0:
                states = self.states[self.tasks[row]]
                drawn = states if lots is None else states[lots[row, : len(states)].argsort()[:shots]]
                found[i] = _moments(drawn[:shots].to(found))
        return found

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        self._store()
        super().set_tasks(tasks, keep)
        self.states = None
        self.keys.requires_grad_(False)
        self.values.requires_grad_(False)

    @torch.no_grad()
    def put(self, embeddings: Mapping[str, Tensor], center: bool = False) -> None:
        """Give tasks the matrices of hidden states [N, L, C] of N shots each, any float dtype; rows of zeros are no tokens.

        center  they are of all tasks that the bank is trained on, from which K and V then learn

        Raises TaskError for an unknown task, with center for one that is left out, and for states of another length or that are not finite;
        nothing is then changed.
        """
        missing = [task for task in self.tasks if task not in embeddings] if center else []
        if missing:
            raise TaskError(
                f"no shots are given of task {missing[0]!r}, from which the bank is to learn: give those of all its tasks"
            )
        rows = {task: row for row, task in enumerate(self.tasks)}
        wide = {task: self._checked(task, states, rows) for task, states in embeddings.items()}
        normed = {task: _normed(states).cpu() for task, states in wide.items()}
        if center:
            self.states = {task: normed[task] for task in self.tasks}
            self.keys.requires_grad_(True)
            self.values.requires_grad_(True)
            self._store()
            return
        for task, states in normed.items():
            moments = _moments(states.to(self.keys))[None]
            self.vectors.data[rows[task]] = self.generated(moments, slice(None)).flatten()
            self._known[rows[task]] = True

    def _checked(self, task: str, states: Tensor, rows: Collection[str]) -> Tensor:
        size = self.keys.shape[-1]
        if task not in rows:
            raise TaskError(f"shots of task {task!r} are given, which is no task of the bank: add it first")
        if states.dim() != 3 or states.shape[-1] != size:
            raise TaskError(
                f"the hidden states of shots of task {task!r} have shape {tuple(states.shape)}, expected (shots, tokens, {size}): take the "
                "encoder that the bank was trained with"
            )
        if not (states.isfinite().all() and states.any()):
            raise TaskError(
                f"the hidden states of shots of task {task!r} are zero or not finite: take another encoder or dtype"
            )
        return states.detach().to(self.keys)

    @torch.no_grad()
    def _store(self) -> None:
        """Have `vectors` hold what the states give, if there are any."""
        for row in range(len(self.tasks)):
            moments = self.draw([row], None)
            if moments is not None:
                self.vectors.data[row] = self.generated(moments, slice(None)).flatten()
                self._known[row] = True

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        self._store()
        super()._save_to_state_dict(destination, prefix, keep_vars)


@routers.register("generative-adapter")
class GenerativeRouter(Router):
    """One skill, a LoRA of A [I, R] and B [R, O] for all tasks, with the task's `S_t` of `OuterProducts` between them: a layer adds

        (alpha / R) (x A S_t) B

    so that a task is one LoRA, with A S_t for its A. B begins at 0. A task without a row, or without a context, has no adapter.

    contexts  those of its bank; None makes some of its own
    """

    def __init__(
        self, config: AdapterConfig, tasks: Sequence[str], index: int = 0, contexts: TaskContexts | None = None
    ):
        super().__init__(config, tasks, index)
        self._alone = contexts is None
        # In a tuple, so that nn.Module does not register it: the bank owns it, if there is one.
        self._contexts = (contexts if contexts is not None else OuterProducts(config, tasks),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        if self._alone:
            self.contexts._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def contexts(self) -> OuterProducts:
        found = self._contexts[0]
        assert isinstance(found, OuterProducts)
        return found

    @classmethod
    def contexts_of(cls, config: AdapterConfig, tasks: Sequence[str], groups: Sequence[str]) -> TaskContexts | None:
        return OuterProducts(config, tasks, groups)

    def forward(self, batch: RoutingBatch) -> Tensor:
        return (batch.tasks >= 0).to(self.even.dtype)[:, None, None]

    def transform(self, batch: RoutingBatch) -> Tensor:
        return self.contexts.matrices(batch, self.index)

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        return []  # all of them are those of its contexts


def _normed(states: Tensor) -> Tensor:
    """h / sqrt(mean(h^2)) over the last axis; zeros stay zeros."""
    return F.normalize(states, dim=-1) * states.shape[-1] ** 0.5


def _moments(states: Tensor) -> Tensor:
    """The mean of h h^T [C, C] over the tokens of states [..., L, C] that are none of zeros."""
    flat = states.flatten(0, -2)
    return flat.T @ flat / flat.any(-1).sum().clamp(min=1)
