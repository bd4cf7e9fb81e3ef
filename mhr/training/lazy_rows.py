"""Rows of tasks that are trained lazily: a step holds those of the tasks that it draws, with their gradient and their optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mhr.errors import TrainingError
from mhr.layers import AdapterBank

ROWS_DRAWN = "rows_of_tasks"
"""Under which the state of an optimizer says whose rows its states are of, in their order."""


@dataclass
class LazyTable:
    """A parameter of which each task has a row, `axis` being that of the task.

    whole   all rows, T of them
    slots   those of a step, at most K: what the parameter holds in training, or is to hold again
    states  of the optimizer, by its names, each with room for N rows of tasks that were drawn so far
    """

    parameter: nn.Parameter
    axis: int
    whole: Tensor
    slots: Tensor
    states: dict[str, Tensor] = field(default_factory=dict)

    def grow(self, name: str, rows: int) -> None:
        """Give a state room for so many rows, zeros where there were none."""
        old = self.states.get(name)
        if old is None or old.shape[self.axis] < rows:
            new = self.slots.new_zeros(_resized(self.slots, self.axis, rows))
            if old is not None:
                new.narrow(self.axis, 0, old.shape[self.axis]).copy_(old)
            self.states[name] = new


class LazyRows:
    """Training of the rows of tasks of a bank in which a step sees the rows of the tasks that it draws, and no others.

    For a step that draws the tasks D, with g_t the gradient of the loss in row t, an optimizer that computes by elements with states s is

        (row_t, s_t) <- update(row_t, g_t, s_t)     for t in D
        (row_t, s_t)    as they were                for all others

    while AdamW on the whole table goes on moving a row by its momentum and shrinking it by weight decay in steps without its task. s_t is 0
    before the first step with t; steps are counted for the table, and not for each row: `torch.optim.SparseAdam`, with decoupled weight decay
    of the rows in D.

    In training a parameter [T, ...] holds K slots, [K, ...], which `load` fills for each step; `AdapterBank.slots` sends the tasks of a
    batch to them. So gradients, their norm, their sum over micro-batches and their average over processes are those of K rows, dense ones,
    whatever the optimizer, the precision and the way of training in parallel. Not in training, in a block of `whole`, it holds all rows.
    States are kept for the tasks drawn so far: 2^n K rows, at most T, enough for them.

    bank   its parameters are changed in place, until `close`
    slots  K, the most tasks that a step draws

    Parameters keep their identity, so that an optimizer may be made before or after; `follow` has it keep its states here.
    """

    def __init__(self, bank: AdapterBank, slots: int):
        self.bank = bank
        self._tasks = len(bank.tasks)
        self.size = min(slots, self._tasks)
        self.tables = [
            LazyTable(parameter, axis, parameter.data, parameter.data.new_zeros(_resized(parameter, axis, self.size)))
            for parameter, axis in bank.row_parameters()
        ]
        self._rows: list[int] = []
        self._places: dict[int, int] = {}  # row of the table -> of the states
        self._open = 0  # blocks of `whole` around the present
        self._optimizer: Optimizer | None = None
        self._at = self._indices([], [])
        self._enter()

    @property
    def drawn(self) -> list[int]:
        """Rows of the tasks that were drawn so far, in the order of their states."""
        return list(self._places)

    def state_bytes(self) -> int:
        """What the states of the tasks drawn so far take, in bytes, without those of the step at work, which the optimizer holds."""
        return sum(state.nbytes for table in self.tables for state in table.states.values())

    @torch.no_grad()
    def load(self, rows: Sequence[int]) -> None:
        """Begin a step that draws the tasks of these rows of the table, in any order and any number of times, at most K tasks."""
        assert not self._open, "a step begins inside a block of `whole`"
        self._rows = sorted(set(rows))
        if len(self._rows) > self.size:
            raise ValueError(f"a step draws {len(self._rows)} tasks, expected at most {self.size}")
        places = [self._places.setdefault(row, len(self._places)) for row in self._rows]
        self._at = self._indices(self._rows, places)
        room = self.room(len(self._places))
        for table in self.tables:
            self._slots(table, table.parameter.data).copy_(table.whole.index_select(table.axis, self._at[0]))
            for name, state in self._states(table):
                table.grow(name, room)
                self._slots(table, state).copy_(table.states[name].index_select(table.axis, self._at[1]))
        self._show()

    def _indices(self, rows: list[int], places: list[int]) -> Tensor:
        """int64 [2, U]: the rows of a step, and their places among the states."""
        return torch.tensor([rows, places], dtype=torch.long).to(self.tables[0].whole.device)

    def room(self, rows: int) -> int:
        """Rows that states have room for when so many were drawn: 2^n K, at most T."""
        room = self.size
        while room < rows:
            room *= 2
        return min(room, self._tasks)

    def follow(self, optimizer: Optimizer) -> None:
        """Keep what a step of this optimizer changes, and have its `state_dict` hold the states of the tasks drawn so far."""
        self._optimizer = optimizer
        optimizer.register_step_post_hook(self._keep)
        optimizer.register_state_dict_post_hook(self._saved)
        optimizer.register_load_state_dict_pre_hook(self._loaded)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block the bank has all of its rows, as they are after the last step."""
        if not self._open:
            self._leave()
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._enter()

    def close(self) -> None:
        """Give the bank all of its rows, for good."""
        self._leave()
        for table in self.tables:
            table.parameter.grad = None  # of slots

    def _enter(self) -> None:
        for table in self.tables:
            table.parameter.data = table.slots
        self._route_over(self.size)
        self._show()

    def _show(self) -> None:
        """Tell the bank which rows its parameters hold."""
        self.bank.slots = {row: slot for slot, row in enumerate(self._rows)}

    def _leave(self) -> None:
        for table in self.tables:
            table.slots = table.parameter.data  # which may have been replaced since
            table.parameter.data = table.whole
        self._route_over(self._tasks)
        self.bank.slots = None

    def _route_over(self, tasks: int) -> None:
        """Have the routers choose among the skills that the bank holds, where each task has one."""
        if self.bank.config.routing.skill_per_task:
            for router in self.bank.groups.values():
                router.resize(tasks)

    def _slots(self, table: LazyTable, tensor: Tensor) -> Tensor:
        """The slots that are in use, of a tensor with K of them."""
        return tensor.narrow(table.axis, 0, len(self._rows))

    @torch.no_grad()
    def _keep(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """After a step: take rows and states out of the slots."""
        for table in self.tables:
            table.whole.index_copy_(table.axis, self._at[0], self._slots(table, table.parameter.data))
            for name, state in self._states(table):
                table.grow(name, self.room(len(self._places)))
                table.states[name].index_copy_(table.axis, self._at[1], self._slots(table, state))

    def _saved(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimizer, with the states of all rows drawn in place of those in the slots."""
        state = dict(state_dict["state"])
        n = len(self._places)
        for table, i in self._numbered(optimizer):
            for name, _ in self._states(table):
                table.grow(name, n)
                # A copy, since a view would be stored with all that lies behind it.
                state[i] = state[i] | {name: table.states[name].narrow(table.axis, 0, n).clone()}
        return {**state_dict, "state": state, ROWS_DRAWN: torch.tensor(self.drawn, dtype=torch.long)}

    def _loaded(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimizer that `_saved` gave, with slots in place of the rows, which are taken."""
        if ROWS_DRAWN not in state_dict:
            raise TrainingError(
                "the state of the optimizer is of a training of whole tables, and rows of tasks are to be trained lazily: go on as it began"
            )
        rows = state_dict[ROWS_DRAWN].tolist()
        self._places = {row: place for place, row in enumerate(rows)}
        state = dict(state_dict["state"])
        for table, i in self._numbered(optimizer):
            for name, value in state.get(i, {}).items():
                if isinstance(value, Tensor) and value.dim() == table.slots.dim():
                    table.states.pop(name, None)
                    table.grow(name, self.room(len(rows)))
                    table.states[name].narrow(table.axis, 0, len(rows)).copy_(value)
                    state[i] = state[i] | {name: torch.zeros_like(table.slots)}
        return {**{key: value for key, value in state_dict.items() if key != ROWS_DRAWN}, "state": state}

    def _numbered(self, optimizer: Optimizer) -> Iterator[tuple[LazyTable, int]]:
        """The tables with their numbers among the parameters of an optimizer."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        numbers = {id(parameter): i for i, parameter in enumerate(parameters)}
        for table in self.tables:
            yield table, numbers[id(table.parameter)]

    def _states(self, table: LazyTable) -> Iterator[tuple[str, Tensor]]:
        """The states of the optimizer that have an element for each of the parameter's."""
        if self._optimizer is not None:
            for name, state in self._optimizer.state.get(table.parameter, {}).items():
                if isinstance(state, Tensor) and state.shape == table.slots.shape:
                    yield name, state


def _resized(tensor: Tensor, axis: int, size: int) -> tuple[int, ...]:
    return (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
