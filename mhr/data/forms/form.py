"""What the columns of a row are to its readers: a form, recognised by the columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mhr.registry import Registry


class RowFault(ValueError):
    """An error in one row, before its file and line are known."""


class Source(NamedTuple):
    """Where a row is from: its task, the names of its split and file, and the names of class indices by column."""

    task: str = ""
    place: str = ""
    labels: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Form(NamedTuple):
    """columns: those it looks for, for error lines; recognises: whether a row has them; read: the row with `input`, `targets`
    and, where it has them, `choices`, the `messages` and `tools` of a conversation, the `metrics` that judge its task, the `part` of its split and
    `references`: whether its targets are references, see `mhr.data.task_rows`. It raises RowFault."""

    columns: str
    recognises: Callable[[Mapping[str, Any], Source], bool]
    read: Callable[[Mapping[str, Any], Source], dict[str, Any]]


forms: Registry[Form] = Registry("form of rows")

ReadRow = Callable[[Mapping[str, Any], Source], dict[str, Any]]


def reads_rows(
    name: str, columns: str, recognises: Callable[[Mapping[str, Any], Source], bool]
) -> Callable[[ReadRow], ReadRow]:
    """Register a function as the reader of rows of a form. A row that has `input` and `targets` is in no need of one."""

    def decorate(read: ReadRow) -> ReadRow:
        forms.register(name)(Form(columns, recognises, read))
        return read

    return decorate


def form_of(row: Mapping[str, Any], source: Source = Source()) -> str | None:  # noqa: B008  (it never changes)
    """The name of the form of a row, or None."""
    return next((name for name, form in forms.items() if form.recognises(row, source)), None)


def has(row: Mapping[str, Any], *names: str) -> bool:
    """Whether the row has a value in each of these columns."""
    return all(row.get(name) is not None for name in names)
