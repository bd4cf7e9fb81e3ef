"""Heads in adapters: one task's rows of the output layer, and adapters whose heads agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

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


def joined_heads(heads: Iterable[TaskHeads | None]) -> TaskHeads | None:
    """The heads of adapters that are merged, whose output layers are averaged: those of the first, with the tasks of all.

    Raises ValueError where they stand for different classes.
    """
    first, *others = heads
    for other in others:
        if (first is None) != (other is None) or (
            first and other and (first.heads, first.layer) != (other.heads, other.layer)
        ):
            raise ValueError(f"{_said(first)}, and {_said(other)}")
    if first is None:
        return None
    tasks = dict(first.tasks)
    for other in others:
        assert other is not None
        tasks |= {task: number for task, number in other.tasks.items() if task not in tasks}
    return dataclasses.replace(first, tasks=tasks)


def _said(heads: TaskHeads | None) -> str:
    return "none" if heads is None else "; ".join(map(str, heads.heads))
