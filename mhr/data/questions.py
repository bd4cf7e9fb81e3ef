"""Rows that ask for an answer: read as the rows of a collection are, with its columns, forms and templates, but in the order in
which they stand, all of them, whether they have an answer or not.

A conversation is asked for what follows its last turn; where that is the assistant's, for this turn, as in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.data.answers import Answers
from mhr.data.example import Example
from mhr.data.faults import Faults
from mhr.data.files.format import BadRow, file_formats, format_of
from mhr.data.files.layout import place_files
from mhr.data.files.rows_in_files import LAYOUT, holds_rows
from mhr.data.forms import RowFault
from mhr.data.forms.form import has
from mhr.data.forms.messages import ROLES
from mhr.data.opening import FileFault
from mhr.data.reading import ReadOptions
from mhr.data.rows import RowReader
from mhr.data.task_rows import TaskRows
from mhr.data.templates import Template
from mhr.errors import DataError


@dataclass(slots=True)
class _InOrder(TaskRows):
    """Rows of one task that also stand among those of all tasks."""

    every: list[Example] = field(default_factory=list)

    def add(self, split: str, named: str, example: Example) -> None:
        self.every.append(example)


class QuestionReader(RowReader):
    """Takes rows one by one; `examples` are what they ask, whose target is a choice or empty and means nothing.

    task     the task of rows that name none; "" leaves it open
    only     whether rows may name no other task
    choices  those of rows that have none
    """

    def __init__(self, options: ReadOptions, task: str = "", *, only: bool = False, choices: Sequence[str] = ()):
        super().__init__(options, Faults())
        self.examples: list[Example] = []
        self._default, self._only, self._offered = task, only, tuple(choices)

    def add(self, row: Mapping[str, Any], line: int) -> None:
        mapped = self.options.column_map.keys() & {"input", "targets"}
        try:
            answered = row if mapped else _as_answered(row)
        except RowFault as error:
            self.faults.row(self._file, line, f"row {self._where(self._own(row), line)!r} {error}", self._default)
            return
        super().add(answered, line)

    def _add(self, row: Mapping[str, Any], own: Mapping[str, Any], line: int, name: str) -> None:
        named = self._word(own, "task", "")
        if self._only and named not in ("", self._default):
            raise RowFault(
                f"is of task {named!r}, but all are asked for as {self._default!r}: leave one of the two out"
            )
        name = named or self._default
        self.tasks.setdefault(name, _InOrder(name, every=self.examples))
        super()._add(row, own, line, name)

    def _choices(self, fields: Mapping[str, Any], template: Template | None) -> tuple[str, ...]:
        return self._offered if self._offered and fields.get("choices") is None else super()._choices(fields, template)

    def _targets(
        self,
        row: Mapping[str, Any],
        fields: Mapping[str, Any],
        choices: tuple[str, ...],
        template: Template | None,
        answers: Answers,
    ) -> tuple[str, ...]:
        return choices[:1] or ("",)

    def _flag(self, rows: TaskRows, own: Mapping[str, Any]) -> None:
        """What is held out is asked like anything else."""


def read_questions(
    path: str | Path, options: ReadOptions, task: str = "", *, only: bool = False, choices: Sequence[str] = ()
) -> list[Example]:
    """What the rows of a file ask, or of the files of a folder, in their order; see `QuestionReader`.

    Raises DataError for what is no file of rows and for the first faulty row, naming file and line.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"{path}: no such file or folder")
    if not holds_rows(str(path)):
        raise DataError(f"{path}: cannot tell the format of the rows: expected {LAYOUT}")
    reader = QuestionReader(options, task, only=only, choices=choices)
    for place in place_files(root)[0]:
        form = format_of(place.file)
        assert form is not None, "files are placed by their format"
        reader.begin(str(place.file), form, "", "")
        try:
            table = file_formats[form].read(place.file)
            reader.labels, reader.hint = table.labels, table.hint
            for line, row in table.rows:
                if isinstance(row, BadRow):
                    reader.faults.row(place.file, line, row.message, "")
                else:
                    reader.add(row, line)
        except FileFault as error:
            reader.faults.add(place.file, error.line, str(error))
    if not reader.examples:
        raise DataError(f"{path} holds no rows: there is nothing to answer")
    return reader.examples


def ask_texts(
    texts: Iterable[str],
    options: ReadOptions,
    tasks: str | Sequence[str] = "",
    *,
    choices: Sequence[str] = (),
    origin: str = "text",
) -> list[Example]:
    """The same of texts, each the `input` of a row; tasks: one for all, or one for each. Raises DataError for an empty text."""
    # A column map is of files.
    own = ReadOptions(templates=options.templates)
    reader = QuestionReader(own, tasks if isinstance(tasks, str) else "", choices=choices)
    reader.begin(origin, origin, "", "")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise DataError(f"{origin} {number} is empty: expected some text to answer")
        name = {} if isinstance(tasks, str) else {"task": tasks[number - 1]}
        reader.add({"input": text, "id": str(number), **name}, number)
    return reader.examples


def _as_answered(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with an empty answer where it has none, so that its form is recognised: with an answer it asks the same. Raises RowFault where the
    answer would tell what is asked."""
    turns = next((key for key in ("messages", "conversations") if isinstance(row.get(key), list)), None)
    if turns is not None:
        last = row[turns][-1] if row[turns] else None
        speaker = last.get("role", last.get("from")) if isinstance(last, Mapping) else None
        said = ROLES.get(str(speaker).lower()) == "assistant" and not last.get("tool_calls")  # type: ignore[union-attr]
        return row if last is None or said else {**row, turns: [*row[turns], {"role": "assistant", "content": ""}]}
    if {"input", "targets"} <= row.keys():
        return row
    if has(row, "instruction"):
        return {"output": "", **row}
    if has(row, "prompt") and "chosen" not in row:
        if has(row, "input") and "completion" not in row:
            raise RowFault(
                "has both input and prompt: leave out the one that is not asked, or add the column of the answer, targets (of input) or "
                "completion (of prompt), which may be empty"
            )
        empty: Any = [{"role": "assistant", "content": ""}] if isinstance(row["prompt"], list) else ""
        return {"completion": empty, **row}
    return {"targets": "", **row} if "input" in row else row
