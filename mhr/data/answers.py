"""Labels as people write them -> strings: names, indices of choices, digits, booleans, letters.

string              itself; digits that are none of the choices are the number of one, if all of the task are
integer             the number of a choice, from 0; itself where choices are integers too, or there are none
true, false         "true", "false", never 1 and 0
list                every acceptable answer
{"text": [...]}     the same (SQuAD); as choices with "label", targets may be one of these labels (ARC)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mhr.data.faults import has_surrogate
from mhr.data.forms.form import RowFault


class NoAnswer(RowFault):
    """A row without an answer. empty: it is there and empty, which is no error; otherwise it is missing, or -1, which is none
    where all of a split are so."""

    def __init__(self, message: str, *, empty: bool = False):
        super().__init__(message)
        self.empty = empty


def text_of(value: Any) -> str | None:
    """A label or text as a string, without space around it; None for what is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    return value.strip() if isinstance(value, str) else None


def read_list(value: Any, column: str) -> tuple[str, ...]:
    """A list of strings that are not empty. Raises RowFault."""
    if column == "choices" and isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            value = json.loads(value)  # a cell of a CSV
    value = value.get("text", value) if isinstance(value, Mapping) else value
    texts = [text_of(v) for v in value] if isinstance(value, (list, tuple)) else []
    if not texts or not all(texts):
        raise RowFault(f"{column} must be a list of strings that are not empty, got {value!r:.60}")
    return tuple(text for text in texts if text)


def check_characters(*texts: str) -> None:
    """Raise RowFault for half of a surrogate pair."""
    if has_surrogate(*texts):
        raise RowFault("holds half of a surrogate pair, an emoji cut in two, which is no character: repair the text")


class Answers:
    """Reads the targets of one task, digits in the same way for all rows."""

    def __init__(self) -> None:
        self.digits: bool | None = None
        """Whether strings of digits are indices of choices; None before the first one."""

    def read(self, value: Any, choices: tuple[str, ...], offered: Any) -> tuple[str, ...]:
        """The acceptable answers of a row; `offered` is what its column of choices holds. Raises RowFault."""
        if isinstance(offered, Mapping) and not isinstance(value, (list, Mapping)):
            labels = list(offered.get("label", ()))
            if value in labels and not (isinstance(value, bool) or any(isinstance(label, bool) for label in labels)):
                return (choices[labels.index(value)],)
        if isinstance(value, bool) and choices:
            return (self._boolean(value, choices),)
        if isinstance(value, int) and not isinstance(value, bool) and choices:
            return (self._number(value, choices, offered),)
        if isinstance(value, (list, tuple, Mapping)):
            return tuple(dict.fromkeys(read_list(value, "targets")))
        text = text_of(value)
        if text is None:
            raise RowFault(f"target {value!r:.60} is neither a string nor an integer: write it as a string")
        return (self._digits(text, choices) if choices and text.isdecimal() else text,)

    def _boolean(self, value: bool, choices: tuple[str, ...]) -> str:
        same = [choice for choice in choices if choice.lower() == str(value).lower()]
        if len(same) != 1:
            raise RowFault(f"target {str(value).lower()} is none of the choices {shown(choices)}: name one of them")
        return same[0]

    def _number(self, value: int, choices: tuple[str, ...], offered: Any) -> str:
        if isinstance(offered, (list, tuple)) and all(isinstance(choice, int) for choice in offered):
            if str(value) not in choices:
                raise RowFault(f"target {value} is none of the choices {shown(choices)}, which are integers themselves")
            return str(value)
        if not 0 <= value < len(choices):
            raise RowFault(f"target {value} is no index of a choice: expected 0 to {len(choices) - 1}")
        return choices[value]

    def _digits(self, text: str, choices: tuple[str, ...]) -> str:
        number = text not in choices and int(text) < len(choices) if len(text) < 9 else False
        if text not in choices and not number:
            return text  # reported as none of the choices
        if self.digits not in (None, number):
            raise RowFault(
                f"target {text!r} is {'the number of a choice' if number else 'a choice'} here, and digits were "
                f"{'choices' if number else 'indices of choices'} before: write integers for indices"
            )
        self.digits = number
        return choices[int(text)] if number else text


def shown(choices: Sequence[str]) -> str:
    return ", ".join(repr(c)[:40] for c in choices[:8])
