"""Heads in adapters: one task's rows of the output layer, and adapters whose heads agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from mhr.adapters.plain import Lazy, PlainAdapter
from mhr.task_heads import TaskHeads


def with_head(plain: PlainAdapter, task: str) -> PlainAdapter:
    """An adapter with the head of one task alone: its rows of the output layer. One without a head for the task stays as it is."""
    heads = plain.heads
    if heads is None or task not in heads.tasks:
        return plain
    rows = heads.outputs(heads.tasks[task])
    layer = heads.layer

    def module(name: str) -> Mapping[str, Tensor]:
        return {
            key: t[rows.start : rows.stop] if is_output(name, key, layer) else t
            for key, t in plain.modules[name].items()
        }

    states = {
        name: {key: (len(rows), *shape[1:]) if is_output(name, key, layer) else shape for key, shape in state.items()}
        for name, state in plain.states.items()
    }
    return dataclasses.replace(plain, modules=Lazy(plain.modules, module), states=states, heads=heads.alone(task))


def is_output(module: str, key: str, layer: str) -> bool:
    """Whether tensor `key` of a module is the weight or the bias of the output layer."""
    return f"{module}.{key}".rpartition(".")[0] == layer


def joined_heads(heads: Sequence[TaskHeads | None]) -> TaskHeads | None:
    """The heads of adapters that are merged: where all are for the same tasks, those of each, whose rows are averaged; where no two are
    for the same task, all of them one behind the other, none averaged.

    Raises ValueError where it is neither, or where some have heads and others none.
    """
    present = [own for own in heads if own is not None]
    if not present:
        return None
    first = present[0]
    if len(present) < len(heads):
        raise ValueError("some have heads, and others have none")
    if all((own.heads, own.tasks, own.layer) == (first.heads, first.tasks, first.layer) for own in present):
        return first
    if not _are_apart(present):
        told = "; ".join(f"{', '.join(own.tasks)}: {', '.join(map(str, own.heads))}" for own in present)
        raise ValueError(f"their heads are neither for the same tasks and classes nor all for different tasks ({told})")
    tasks: dict[str, int] = {}
    before = 0
    for own in present:
        tasks |= {task: before + number for task, number in own.tasks.items()}
        before += len(own.heads)
    return dataclasses.replace(first, heads=tuple(head for own in present for head in own.heads), tasks=tasks)


def stand_apart(heads: Sequence[TaskHeads | None]) -> bool:
    """Whether the heads of several adapters are kept one behind the other when these are merged."""
    present = [own for own in heads if own is not None]
    return len(present) > 1 and _are_apart(present)


def _are_apart(heads: Sequence[TaskHeads]) -> bool:
    tasks = [task for own in heads for task in own.tasks]
    return len(set(tasks)) == len(tasks) and len({own.layer for own in heads}) == 1


def without_outputs(
    states: Mapping[str, Mapping[str, tuple[int, ...]]], layer: str
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of modules, with 0 for the outputs of the output layer, however many it has."""
    return {
        name: {key: (0, *shape[1:]) if is_output(name, key, layer) else tuple(shape) for key, shape in state.items()}
        for name, state in states.items()
    }
