"""PHA's prototypes (arXiv 2310.11670): a vector for each task that its examples can be told by, which new tasks begin with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhr.config import AdapterConfig
from mhr.errors import TaskError
from mhr.routing.projections import Projections

DRAWN, TASKS_DRAWN = 128, 64
"""Examples that the loss of a step is of, and the most tasks that they are of."""


class Prototypes(Projections):
    """Contexts k [T, C] that are prototypes of their tasks: learnt with the bank, and by two losses with a network on examples.

        z_i = W2 relu(W1 x_i + b1) + b2          x_i an example's embedding, z_i [C]; z and k below are of length 1
        loss = weight * (L_examples + L_prototypes),   means over examples i, t the task of i
        L_examples    = mean_j -log(exp(z_i z_j / tau) / sum_{a != i} exp(z_i z_a / tau))         j the other examples of t
        L_prototypes  = -log(exp(z_i k_t / tau) / sum_{t' != t} exp(z_i k_t' / tau))

    The last denominator leaves t out, as the published code does. A new task has the prototype that its examples are nearest to, by the
    mean of z_i k over them. Embeddings are of the base model without its bank (PHA's are of the encoder that it trains), so that
    examples of new tasks are embedded as those of known ones were.

    instances  [T, N, X], embeddings of N examples of each training task, from `put`; None where there is nothing to contrast
    """

    takes_examples = True
    instances: Tensor | None

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], groups: Sequence[str] = ("",)):
        super().__init__(config, tasks, groups)
        size = self.settings.instance_width
        hidden = self.settings.hidden
        self.retrieve = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, self.size))
        self.retrieve.requires_grad_(False)  # until there are instances
        self.register_buffer("instances", None, persistent=False)
        self._first: tuple[list[str], Tensor] | None = None

    @property
    def embedded(self) -> bool:
        return True

    def reset(self) -> None:
        super().reset()
        for module in self.retrieve:
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def trained(self) -> list[nn.Parameter]:
        own = set() if self.instances is not None else {id(p) for p in self.retrieve.parameters()}
        return [p for p in super().trained() if id(p) not in own]

    def train_in(self, adapted: bool) -> None:
        super().train_in(adapted)
        self.retrieve.requires_grad_(not adapted)

    def prototypes(self) -> tuple[list[str], Tensor]:
        """The tasks that the bank was trained on and their prototypes [T, C]: those before its tasks were changed."""
        return (self.tasks, self.vectors.detach()) if self._first is None else self._first

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        if self._first is None:
            self._first = list(self.tasks), self.vectors.detach().clone()
        super().set_tasks(tasks, keep)
        self.instances = None

    @torch.no_grad()
    def put(self, embeddings: Mapping[str, Tensor], center: bool = False) -> None:
        """Embeddings [N, X] of N examples of each task, any float dtype.

        center  they are of all tasks that the bank is trained on, whose prototypes then learn from them; otherwise of new tasks, each of
                which is given the prototype it is nearest to

        Raises TaskError for an unknown task, for embeddings of another length, for some that are not finite, and with center for a task that
        is left out or has another number of examples; nothing is then changed.
        """
        rows = {task: row for row, task in enumerate(self.tasks)}
        wide = {task: self._checked(task, found, rows) for task, found in embeddings.items()}
        if center:
            self.instances = torch.stack(self._of_all(wide))
            self.retrieve.requires_grad_(True)
            return
        names, known = self.prototypes()
        for task, found in wide.items():
            alike = F.normalize(self.retrieve(found), dim=-1) @ F.normalize(known.to(found), dim=-1).T
            best = int(alike.mean(0).argmax())
            self.nearest[task] = names[best]
            self.vectors.data[rows[task]] = known[best]

    def _of_all(self, embeddings: Mapping[str, Tensor]) -> list[Tensor]:
        """The embeddings of every task of the bank, in its order."""
        first = self.tasks[0]
        for task in self.tasks:
            if task not in embeddings:
                raise TaskError(
                    f"no examples are given of task {task!r}, from which the bank is to learn: give those of all its tasks"
                )
            n, expected = len(embeddings[task]), len(embeddings[first])
            if n != expected:
                raise TaskError(
                    f"{n} examples of task {task!r} are given, but {expected} of task {first!r}: give as many of each task"
                )
        return [embeddings[task] for task in self.tasks]

    def _checked(self, task: str, found: Tensor, rows: Collection[str]) -> Tensor:
        size = self.settings.instance_width
        if task not in rows:
            raise TaskError(f"examples of task {task!r} are given, which is no task of the bank: add it first")
        if found.dim() != 2 or found.shape[1] != size or not len(found):
            raise TaskError(
                f"the embeddings of examples of task {task!r} have shape {tuple(found.shape)}, expected (examples, {size}): take the encoder "
                "that the bank was trained with"
            )
        if not found.isfinite().all():
            raise TaskError(f"an embedding of an example of task {task!r} is not finite: take another encoder or dtype")
        return found.detach().to(self.center)

    def own_loss(self, generator: torch.Generator) -> Tensor | None:
        if self.instances is None or len(self.tasks) < 2:
            return None
        tasks, n, _ = self.instances.shape
        some = min(tasks, TASKS_DRAWN)
        each = min(n, max(DRAWN // some, 2))
        drawn = torch.randperm(tasks, generator=generator)[:some].repeat_interleave(each)
        which = torch.rand(some, n, generator=generator).argsort(1)[:, :each].flatten()
        device = self.vectors.device
        drawn, which = drawn.to(device), which.to(device)
        weight: float = self.settings.contrast
        with torch.autocast(device.type, enabled=False):
            z = self.retrieve(self.instances[drawn, which])
            return weight * contrast(z, self.vectors, drawn, self.settings.tau)


def contrast(z: Tensor, prototypes: Tensor, tasks: Tensor, tau: float) -> Tensor:
    """`L_examples + L_prototypes` of `Prototypes`: z [N, C] of examples of the tasks int64 [N], prototypes [T, C]; of any length."""
    z, k = F.normalize(z, dim=-1), F.normalize(prototypes, dim=-1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    alike = (z @ z.T / tau).masked_fill(itself, -torch.inf)
    pairs = (tasks[:, None] == tasks) & ~itself
    log_shares = (alike - alike.logsumexp(1, keepdim=True)).masked_fill(~pairs, 0.0)
    among = -(log_shares.sum(1) / pairs.sum(1).clamp(min=1)).mean()
    near = z @ k.T / tau
    own = F.one_hot(tasks, len(k)).bool()
    to = -(near[own] - near.masked_fill(own, -torch.inf).logsumexp(1)).mean()
    return among + to
