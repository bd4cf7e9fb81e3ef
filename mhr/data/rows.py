"""Rows with named columns -> tasks: what files and Hugging Face datasets have in common.

Columns: input and targets (a string, a list of strings, or the number of the right choice); optional task, choices (a list
of strings), split, held_out (true or false), category, definition (of the task, in words), id. A column map gives other names: {"input": "question"}. Rows of
the forms of `mhr.data.forms` are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mhr.data.answers import Answers, NoAnswer, check_characters, read_list, shown, text_of
from mhr.data.columns import COLUMNS, MISSING, check_column_map, look_up, not_found
from mhr.data.example import Example, Task
from mhr.data.faults import Faults, Notes
from mhr.data.forms import RowFault, Source, form_of, forms
from mhr.data.masked import Piece
from mhr.data.reading import ReadOptions
from mhr.data.splits import SPLITS, split_of
from mhr.data.task_rows import TaskRows, Unanswered
from mhr.data.templates import Template
from mhr.errors import nearest

PLAIN = "input and targets"

_FLAGS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


class RowReader:
    """Takes rows one by one and makes tasks of them. A faulty row is recorded and left out.

    labels  column -> names of its class indices, of the file that was begun
    hint    what to say of it where a row lacks a column
    """

    def __init__(self, options: ReadOptions, faults: Faults):
        check_column_map(options.column_map)
        self.options, self.faults = options, faults
        self.tasks: dict[str, TaskRows] = {}
        self.recognised: list[str] = []
        self.labels: Mapping[str, tuple[str, ...]] = {}
        self.hint = ""
        self.columns = {name: options.column_map.get(name, name) for name in COLUMNS}
        self._file = self._name = self._task = self._split = ""
        self._form: str | None = None

    def begin(self, file: str, format_: str, task: str, split: str) -> None:
        """Rows of another file follow; `task` and `split` hold where they have no such columns."""
        self._file, self._format, self._task, self._split = file, format_, task, split
        self._name = Path(file).name
        self.labels, self.hint, self._form = {}, "", None

    def add(self, row: Mapping[str, Any], line: int) -> None:
        """Take one row."""
        own = self._own(row)
        name = self._task
        try:
            name = self._word(own, "task", self._task) or "task"
            self._add(row, own, line, name)
        except RowFault as error:
            self.faults.row(self._file, line, f"row {self._where(own, line)!r} {error}", name)

    def finish(self, notes: Notes) -> list[Task]:
        """The tasks of all rows taken, in the order in which they first came."""
        found = (rows.finish(self.options, self.faults, notes) for rows in self.tasks.values())
        return [task for task in found if task is not None]

    def _own(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row that are ours, by our names."""
        return {name: value for name, theirs in self.columns.items() if (value := look_up(row, theirs)) is not MISSING}

    def _add(self, row: Mapping[str, Any], own: Mapping[str, Any], line: int, name: str) -> None:
        split_name = self._word(own, "split", self._split)
        split = split_of(split_name) if split_name else ""
        if split is None:
            raise RowFault(f"is of the unknown split {split_name!r}: {nearest(split_name, SPLITS)}")
        where = self._where(own, line)
        check_characters(name, where)
        fields = self._fields(row, own, Source(name, f"{split_name} {self._name}", self.labels))
        rows = self.tasks.setdefault(name, TaskRows(name))
        template = None if self.options.templates is None else self.options.templates.of(name)
        pieces: tuple[Piece, ...] = ()
        text = "" if template else self._text(row, fields, "input")
        choices = self._choices(fields, template)
        try:
            targets = self._targets(row, fields, choices, template, rows.answers)
        except NoAnswer as error:
            if not error.empty and split not in ("validation", "test"):
                raise
            rows.unanswered[split].append(
                Unanswered(self._file, line, f"row {where!r} {error}", faulty=not error.empty)
            )
            return
        if template is not None:
            named = choices if fields.get("choices") is not None else self.labels.get(self.columns["targets"], ())
            template.used.update(targets, named)
            columns = self._columns(row, fields, name)
            text, pieces = template.render_input(columns), template.render_pieces(columns)
            choices, targets = (
                tuple(template.render_choice(label, columns) for label in labels) for labels in (choices, targets)
            )
            if not text or (pieces and not any(piece.role == "field" for piece in pieces)):
                raise RowFault("has an empty input by its template")
        if choices and targets[0] not in choices:
            raise RowFault(f"has the label {targets[0]!r}, which is not among the choices {shown(choices)}")
        if len(set(choices)) == 1:
            raise RowFault(
                f"has the only choice {choices[0]!r:.60}, so that any answer is right: give at least two or none"
            )
        # What a prompt template wrote is no conversation any more.
        messages, tools = ((), ()) if template else (fields.get("messages", ()), fields.get("tools", ()))
        check_characters(text, *targets, *choices, *(m["content"] for m in messages))
        self._flag(rows, own)
        rows.category = rows.category or self._word(own, "category", "")
        rows.definitions.add(self._definition(own))
        rows.metrics = rows.metrics or tuple(fields.get("metrics", ()))
        rows.references |= bool(fields.get("references"))
        more = {"part": fields.get("part", ""), "pieces": pieces, "tools": tools}
        rows.add(split, split_name, Example(name, text, targets, choices, where, messages, **more))

    def _fields(self, row: Mapping[str, Any], own: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
        """Our columns that a row has, with what its form makes of it. All rows of a file are of one form."""
        plain = "input" in own and "targets" in own or not {"input", "targets"}.isdisjoint(self.options.column_map)
        form = None if plain else form_of(row, source)
        columns = forms[form].columns if form else PLAIN
        if self._form is None:
            self._form = columns
            task = f"{self._split or 'no split'} of {self._task}"
            used = ", ".join(f"{ours}={theirs}" for ours, theirs in self.options.column_map.items())
            read = used or (columns if form or plain else f"no known columns ({', '.join(map(str, row))})")
            self.recognised.append(f"{self._file}: {self._format}, {read}, {task}")
        elif (form or plain) and columns != self._form:
            raise RowFault(f"has {columns}, and rows before it {self._form}: one file holds rows of one form")
        return {**own, **forms[form].read(row, source)} if form else own

    def _word(self, own: Mapping[str, Any], column: str, default: str) -> str:
        """A column that holds a name, or what stands for it."""
        value = own.get(column)
        text = default if value is None else text_of(value)
        if text is None:
            raise RowFault(f"has a {column} that is no string: {value!r:.60}")
        return text or default

    def _definition(self, own: Mapping[str, Any]) -> str:
        """What a row says that its task asks for. A column that holds something else by this name is none of ours."""
        value = own.get("definition")
        return value.strip() if isinstance(value, str) else ""

    def _where(self, own: Mapping[str, Any], line: int) -> str:
        value = own.get("id")
        return f"{self._name}:{line}" if value is None or value == "" else str(value)

    def _columns(self, row: Mapping[str, Any], fields: Mapping[str, Any], task: str) -> dict[str, Any]:
        """What the fields of a template may name: the row's own columns, and ours by the column map or the row's form."""
        ours = {name: fields[name] for name in self.options.column_map if name in fields}
        made = {name: value for name, value in fields.items() if name in COLUMNS}
        return {key: "" if value is None else value for key, value in ({**made, **row, **ours, "task": task}).items()}

    def _text(self, row: Mapping[str, Any], fields: Mapping[str, Any], column: str) -> str:
        value = fields.get(column, MISSING)
        if value is MISSING:
            raise self._missing(row, column)
        text = text_of(value)
        if not text:
            raise RowFault(self._no_text(column, value))
        return text

    def _no_text(self, column: str, value: Any) -> str:
        got = "nothing" if value is MISSING else repr(value)[:60]
        return f"has no {column}: expected a string that is not empty in {self.columns[column]!r}, got {got}"

    def _missing(self, row: Mapping[str, Any], column: str) -> RowFault:
        looked = (
            "" if self.options.column_map else f"; other forms have {', or '.join(f.columns for f in forms.values())}"
        )
        return RowFault(
            f"has no column {self.columns[column]!r}: {not_found(row, self.columns[column])} (as in "
            f"{column}={next((key for key in row if key not in COLUMNS), 'name')}){looked if self._form == PLAIN else ''}{self.hint}"
        )

    def _choices(self, fields: Mapping[str, Any], template: Template | None) -> tuple[str, ...]:
        """Those of the row, of its template, or the names of its class labels."""
        if fields.get("choices") is not None:
            return read_list(fields["choices"], "choices")
        words = tuple(template.verbalizers) if template else ()
        return words or self.labels.get(self.columns["targets"], ())

    def _targets(
        self,
        row: Mapping[str, Any],
        fields: Mapping[str, Any],
        choices: tuple[str, ...],
        template: Template | None,
        answers: Answers,
    ) -> tuple[str, ...]:
        """The acceptable answers. Raises NoAnswer where there is none, or the -1 that stands for one that is withheld."""
        value = fields.get("targets", MISSING)
        if value is MISSING:
            raise NoAnswer(str(self._missing(row, "targets")))
        if value is None or (isinstance(value, str) and not value.strip()):
            raise NoAnswer(self._no_text("targets", value), empty=True)
        offered = fields.get("choices")
        if template is not None and template.verbalizers and offered is None and isinstance(value, int | str):
            # A label by itself, or the number of a class name; words have no order that a number could mean.
            text, names = text_of(value) or "", self.labels.get(self.columns["targets"], ())
            if value == -1 and text not in template.verbalizers:
                raise NoAnswer("target -1 has no word in its template")
            number = value if isinstance(value, int) and not isinstance(value, bool) else -1
            return (names[number] if text not in template.verbalizers and 0 <= number < len(names) else text,)
        try:
            return answers.read(value, choices, offered)
        except RowFault as error:
            raise NoAnswer(str(error)) if value == -1 else error from None

    def _flag(self, rows: TaskRows, own: Mapping[str, Any]) -> None:
        value = own.get("held_out")
        value = False if value is None or value == "" else value
        flag = _FLAGS.get(value.lower() if isinstance(value, str) else value) if isinstance(value, (str, int)) else None
        if flag is None:
            raise RowFault(f"has a held_out that is neither true nor false: {value!r:.60}")
        if rows.held_out not in (None, flag):
            raise RowFault(
                f"is of task {rows.name!r}, which is held out in some rows and not in others: make them agree"
            )
        rows.held_out = flag
