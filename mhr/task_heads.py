"""Heads of classification and regression: what the outputs of a model with a sequence-classification head stand for.

The output layer of such a model, its last Linear, has one block of rows for each head:

    head t    kind       outputs                    answer
    K classes classify   K, a score of each class   the label of the greatest
    number    regress    1                          the number itself
    choices   rank       1, of an (input, choice)   the choice of the greatest

so that a model for one task is the model of transformers with `num_labels` = K, and all heads of a batch come out of one product.
This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from mhr.errors import CheckpointError, TaskError, nearest

HEAD_CHOICES = ("auto", "classify", "regress", "rank", "mlm")
"""Values of the setting `head`."""
_, CLASSIFY, REGRESS, RANK, MLM = HEAD_CHOICES
OF_OUTPUTS = (CLASSIFY, REGRESS, RANK)
"""Those that are blocks of an output layer; the other one is the head of a masked language model."""
CONFIG_KEY = "mhr_task_heads"
"""Of the configuration of a transformers model, what its outputs stand for."""


@dataclass(frozen=True, slots=True)
class TaskHead:
    """What a block of outputs stands for: its kind, and the texts of its classes where it has some."""

    kind: str
    labels: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Outputs, K for K classes."""
        return len(self.labels) or 1

    def alike(self, other: TaskHead) -> bool:
        """Whether both tell the same classes apart, in whichever order, or both the same kind of number."""
        return self.kind == other.kind and sorted(self.labels) == sorted(other.labels)

    def __str__(self) -> str:
        return f"{self.kind} {', '.join(map(repr, self.labels))}" if self.labels else self.kind


@dataclass(frozen=True, slots=True)
class TaskHeads:
    """The heads of a model, in the order of their outputs.

    heads   what each block of outputs stands for
    tasks   task -> number of its head; several tasks may share one
    layer   name of the output layer in the model
    shared  whether tasks of one label set share a head, so that one that was not trained on may be asked through it
    """

    heads: tuple[TaskHead, ...]
    tasks: Mapping[str, int]
    layer: str = ""
    shared: bool = False

    @property
    def size(self) -> int:
        """Outputs of all heads together."""
        return sum(head.size for head in self.heads)

    def outputs(self, number: int) -> range:
        """The outputs of a head, as columns of the logits and rows of the output layer's weight."""
        first = [0, *accumulate(head.size for head in self.heads)][number]
        return range(first, first + self.heads[number].size)

    def find(self, task: str, choices: Sequence[str] = ()) -> int | None:
        """The number of the head that answers an example of `task` with these choices; None where no head can.

        A task without a head of its own is answered by one that is shared and has its choices for classes, or that ranks choices.
        """
        if task in self.tasks:
            return self.tasks[task]
        offered = TaskHead(CLASSIFY, tuple(dict.fromkeys(choices)))
        alike = [number for number, head in enumerate(self.heads) if self.shared and choices and head.alike(offered)]
        ranks = [number for number, head in enumerate(self.heads) if choices and head.kind == RANK]
        return next(iter([*alike, *ranks]), None)

    def of(self, task: str, choices: Sequence[str] = ()) -> int:
        """`find`, or TaskError where no head answers the task."""
        number = self.find(task, choices)
        if number is None:
            raise TaskError(
                f"the model has no head for task {task!r}: {nearest(task, self.tasks)}; adapt the model to it, which gives it one"
            )
        return number

    def alone(self, task: str) -> TaskHeads:
        """The head of one task by itself. Raises TaskError for a task without one."""
        return replace(self, heads=(self.heads[self.of(task)],), tasks={task: 0})

    def to_json(self) -> dict[str, Any]:
        heads = [{"kind": head.kind, "labels": list(head.labels)} for head in self.heads]
        return {"layer": self.layer, "heads": heads, "tasks": dict(self.tasks), "shared": self.shared}

    @classmethod
    def from_json(cls, said: Any, where: str) -> TaskHeads:
        """The heads that `to_json` wrote. Raises CheckpointError, naming `where`, for what it cannot have written."""
        try:
            heads = tuple(TaskHead(str(head["kind"]), tuple(map(str, head["labels"]))) for head in said["heads"])
            tasks = {str(task): int(number) for task, number in said["tasks"].items()}
            found = cls(heads, tasks, str(said["layer"]), bool(said["shared"]))
        except (KeyError, TypeError, AttributeError, ValueError) as fault:
            raise CheckpointError(f"{where} does not describe heads: {type(fault).__name__} {fault}") from None
        wrong = next((head.kind for head in heads if head.kind not in OF_OUTPUTS), None)
        if wrong is not None:
            raise CheckpointError(f"{where} has a head of kind {wrong!r}, expected one of {', '.join(OF_OUTPUTS)}")
        if not heads or any(not 0 <= number < len(heads) for number in tasks.values()):
            raise CheckpointError(f"{where} gives a task a head that is not among its {len(heads)}")
        return found


def join_heads(heads: Mapping[str, TaskHead], share: bool = False) -> TaskHeads:
    """Heads for tasks that have these: one each, in their order; ranking is one for all tasks, since it knows no classes.

    share  tasks of one label set, and tasks of numbers, have one head together
    """
    found: list[TaskHead] = []
    tasks: dict[str, int] = {}
    for task, head in heads.items():
        joins = (i for i, other in enumerate(found) if (share or head.kind == RANK) and head.alike(other))
        number = next(joins, len(found))
        if number == len(found):
            found.append(head)
        tasks[task] = number
    return TaskHeads(tuple(found), tasks, shared=share)


def only_ranks(heads: Iterable[TaskHead]) -> bool:
    """Whether nothing but (input, choice) pairs is scored."""
    return all(head.kind == RANK for head in heads)
