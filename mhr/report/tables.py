"""Tables of a report: one content for the page, for Markdown and for JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """text is what a reader sees; value what sorting goes by and JSON holds, the text itself unless it is a number."""

    text: str
    value: float | str | None = None
    best: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table. The columns after the first `names` are numbers, or right-aligned strings; foot rows do not sort."""

    key: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    foot: list[list[Cell]] = field(default_factory=list)
    note: str = ""
    names: int = 1

    def to_markdown(self) -> str:
        """A pipe table under its title; the best cell of a row is bold."""
        head = ["| " + " | ".join(map(_plain, self.columns)) + " |"]
        head.append("|" + "|".join("---" if i < self.names else "---:" for i in range(len(self.columns))) + "|")
        body = ["| " + " | ".join(_marked(cell) for cell in row) + " |" for row in [*self.rows, *self.foot]]
        note = ["", self.note] if self.note else []
        return "\n".join([f"### {self.title}", "", *head, *body, *note, ""])

    def to_json(self) -> dict[str, Any]:
        """Values by column, row by row; text where a cell has no value."""
        return {
            "title": self.title,
            "columns": self.columns,
            "rows": [[_value(cell) for cell in row] for row in self.rows],
            "foot": [[_value(cell) for cell in row] for row in self.foot],
            "note": self.note,
        }


def text(content: str) -> Cell:
    return Cell(content, content)


def score_cell(value: float | None, spread: float | None = None, best: bool = False) -> Cell:
    """A fraction in per cent, with its standard deviation where there is one; JSON keeps the fraction."""
    if value is None:
        return Cell("")
    shown = f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")
    return Cell(shown, value, best)


def points_cell(value: float | None) -> Cell:
    """A difference of scores in points, without a sign."""
    return Cell("") if value is None else Cell(f"{100 * value:.1f}", value)


def interval_cell(ends: tuple[float, float] | None) -> Cell:
    """The interval of a difference of scores in points; sorted by its lower end."""
    return Cell("") if ends is None else Cell(f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}", ends[0])


def whole(value: int | float | None) -> Cell:
    return Cell("") if value is None else Cell(f"{value:,.0f}", value)


def decimal(value: float | None, digits: int = 3) -> Cell:
    return Cell("") if value is None else Cell(f"{value:.{digits}f}", value)


def byte_size(value: float | None) -> Cell:
    """Bytes in the largest unit that leaves a number of at least 1."""
    if value is None:
        return Cell("")
    size, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return Cell(f"{size:.3g} {unit}", value)


def p_value(value: float) -> str:
    """ "p = 0.03", never a false 0."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}" if value < 0.1 else f"p = {value:.2f}"


def p_number(value: float) -> str:
    """`p_value` for a column that is called p: "0.03", "< 0.001"."""
    return p_value(value).removeprefix("p ").removeprefix("= ")


def first_names(names: Sequence[str], most: int = 3) -> str:
    """ "a, b and 7 more"."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def count(n: int, noun: str) -> str:
    """ "1 task", "3 tasks"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _marked(cell: Cell) -> str:
    content = _plain(cell.text)
    return f"**{content}**" if cell.best and content else content


def _plain(content: str) -> str:
    """Text in a cell of a pipe table, where a "<" that begins a tag would be HTML."""
    return re.sub(r"\||<(?=[A-Za-z/!?])", r"\\\g<0>", content.replace("\n", " "))


def _value(cell: Cell) -> float | str | None:
    return cell.text or None if cell.value is None else cell.value
