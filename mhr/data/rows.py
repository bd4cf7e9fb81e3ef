"""Rows with named columns -> tasks: what JSONL, Parquet and Hugging Face datasets have in common.

Columns: input and targets (a text, a list of texts, or the number of the right choice); optional task, choices (a list
of texts), split ("train", "test" or "validation"), held_out (true or false), category, id. A column map gives other
names: {"input": "question"}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mhr.data.example import Example, Task
from mhr.data.reading import Faults, ReadOptions, label_set
from mhr.data.templates import Template
from mhr.errors import ConfigError, nearest

COLUMNS = ("task", "input", "targets", "choices", "split", "held_out", "category", "id")

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
}
"""Names of splits as they occur, and what they are."""

_FLAGS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


@dataclass(slots=True)
class _Rows:
    """Examples of one task by split ("" where rows have none), and what its rows say of it."""

    splits: dict[str, list[Example]] = field(
        default_factory=lambda: {"train": [], "validation": [], "test": [], "": []}
    )
    held_out: bool | None = None
    category: str = ""


class RowReader:
    """Takes rows one by one and makes tasks of them. A row that is faulty is told and left out."""

    def __init__(self, options: ReadOptions, faults: Faults, labels: Sequence[str] = ()):
        check_column_map(options.column_map)
        self.options, self.faults, self.labels = options, faults, tuple(labels)
        self.tasks: dict[str, _Rows] = {}

    def column(self, name: str) -> str:
        return self.options.column_map.get(name, name)

    def add(self, row: Mapping[str, Any], file: str, line: int, task: str = "", split: str = "") -> None:
        """Take one row; `task` and `split` hold where the row has no such column."""
        try:
            self._add(row, file, line, task, split)
        except _RowError as error:
            self.faults.add(file, line, str(error))

    def _add(self, row: Mapping[str, Any], file: str, line: int, task: str, split: str) -> None:
        name = self._get(row, "task", task or "task")
        where = str(self._get(row, "id", f"{file.rsplit('/', 1)[-1]}:{line}"))
        template = None if self.options.templates is None else self.options.templates.of(str(name))
        text = self._text(row, "input", where) if template is None else ""
        if self._get(row, "choices", None) is not None:
            choices = tuple(self._texts(row, "choices", where))
        else:
            choices = tuple(template.verbalizers) if template and template.verbalizers else self.labels
        targets = tuple(dict.fromkeys(self._targets(row, choices, where, template)))
        if template is not None:
            columns = self._columns(row, str(name))
            text = template.render_input(columns)
            choices, targets = (
                tuple(template.render_choice(label, columns) for label in labels) for labels in (choices, targets)
            )
        if choices and targets[0] not in choices:
            shown = ", ".join(repr(c) for c in choices[:8])
            raise _RowError(f"row {where!r}: label {targets[0]!r} is not among the choices {shown}")
        split_name = str(self._get(row, "split", split)).lower()
        if split_name and split_name not in SPLITS:
            raise _RowError(f"row {where!r}: unknown split {split_name!r}: {nearest(split_name, SPLITS)}")
        rows = self.tasks.setdefault(str(name), _Rows())
        self._flag(rows, row, str(name), where)
        rows.category = rows.category or str(self._get(row, "category", ""))
        rows.splits[SPLITS.get(split_name, "")].append(Example(str(name), text, targets, choices, where))

    def _get(self, row: Mapping[str, Any], column: str, default: Any) -> Any:
        value = row.get(self.column(column))
        return default if value is None else value

    def _columns(self, row: Mapping[str, Any], task: str) -> dict[str, Any]:
        """What the fields of a template may name: the row's own columns, and ours by the column map."""
        ours = {name: row[self.column(name)] for name in COLUMNS if self.column(name) in row}
        return {key: "" if value is None else value for key, value in ({**row, **ours, "task": task}).items()}

    def _text(self, row: Mapping[str, Any], column: str, where: str) -> str:
        name = self.column(column)
        if name not in row:
            raise _RowError(
                f"row {where!r} has no column {name!r}: it has {', '.join(map(str, row))}; a column map can name another"
            )
        value = row[name]
        if not isinstance(value, str) or not value.strip():
            raise _RowError(
                f"row {where!r} has no {column}: expected a text that is not empty in {name!r}, got {value!r:.60}"
            )
        return value.strip()

    def _texts(self, row: Mapping[str, Any], column: str, where: str) -> list[str]:
        value = row[self.column(column)]
        value = value.get("text", value) if isinstance(value, Mapping) else value
        if (
            not isinstance(value, (list, tuple))
            or not value
            or not all(isinstance(v, str) and v.strip() for v in value)
        ):
            raise _RowError(f"row {where!r}: {column} must be a list of texts that are not empty, got {value!r:.60}")
        return [v.strip() for v in value]

    def _targets(
        self, row: Mapping[str, Any], choices: tuple[str, ...], where: str, template: Template | None
    ) -> list[str]:
        """A text, a list of texts, the number of the right choice (or a label with a verbalizer of its own), or its letter if
        choices are {"text", "label"}."""
        value = row.get(self.column("targets"))
        if template is not None and isinstance(value, int) and template.verbalizers:
            # A number may be a label by itself, or stand for the name of one.
            named = self.labels[value] if 0 <= value < len(self.labels) else str(value)
            return [str(value) if str(value) in template.verbalizers else named]
        offered = row.get(self.column("choices"))
        if isinstance(offered, Mapping) and value in offered.get("label", ()):
            value = list(offered["label"]).index(value)
        if isinstance(value, int) and not isinstance(value, bool) and choices:
            if not 0 <= value < len(choices):
                raise _RowError(
                    f"row {where!r}: target {value} is the number of no choice: expected 0 to {len(choices) - 1}"
                )
            return [choices[value]]
        if isinstance(value, (list, tuple, Mapping)):
            return self._texts(row, "targets", where)
        return [self._text(row, "targets", where)]

    def _flag(self, rows: _Rows, row: Mapping[str, Any], name: str, where: str) -> None:
        value = self._get(row, "held_out", False)
        flag = _FLAGS.get(value.lower() if isinstance(value, str) else value)
        if flag is None:
            raise _RowError(f"row {where!r}: held_out must be true or false, got {value!r:.60}")
        if rows.held_out not in (None, flag):
            raise _RowError(f"row {where!r}: task {name!r} is held out in some rows and not in others: make them agree")
        rows.held_out = flag

    def finish(self, notes: list[str]) -> list[Task]:
        """The tasks of all rows taken, in the order in which they first came."""
        return [self._task(name, rows, notes) for name, rows in self.tasks.items()]

    def _task(self, name: str, rows: _Rows, notes: list[str]) -> Task:
        train, validation, test, unsplit = (rows.splits[s] for s in ("train", "validation", "test", ""))
        if test and validation:
            notes.append(f"{name}: {len(validation)} validation examples were left out, since there is a test split")
        test = test or validation
        if not test and unsplit:
            # As many as a fifth, so that a small task keeps most of its examples to learn from.
            n_test = min(self.options.limit_test, len(unsplit) // 5)
            notes.append(f"{name}: no test split, so its first {n_test} examples are for evaluation")
            test, unsplit = unsplit[:n_test], unsplit[n_test:]
        train = train + unsplit
        every = train + test
        choices = every[0].choices if len({e.choices for e in every}) == 1 else ()
        if not any(e.choices for e in every):
            choices = label_set(every)
            train, test = ([replace(e, choices=choices) for e in part] for part in (train, test))
        return Task(
            name,
            self.options.cap(name, train),
            test[: self.options.limit_test],
            bool(rows.held_out),
            rows.category,
            choices,
        )


class _RowError(ValueError):
    """A fault of one row, before its file and line are known."""


def check_column_map(column_map: Mapping[str, str]) -> None:
    for name in column_map:
        if name not in COLUMNS:
            raise ConfigError(f"unknown column {name!r} in the column map: {nearest(name, COLUMNS)}")


def parse_column_map(text: str) -> dict[str, str]:
    """Read "input=question,targets=answer" as {"input": "question", "targets": "answer"}.

    Raises ConfigError for anything else.
    """
    pairs: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        ours, equals, theirs = (p.strip() for p in part.partition("="))
        if not (ours and equals and theirs):
            raise ConfigError(f"column map {text!r}: expected pairs like 'input=question,targets=answer', got {part!r}")
        if ours in pairs:
            raise ConfigError(f"column map {text!r} gives {ours!r} twice")
        pairs[ours] = theirs
    check_column_map(pairs)
    return pairs
