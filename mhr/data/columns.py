"""Names of columns: ours, those that a column map gives instead, and dotted ones that reach into nested columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from mhr.errors import ConfigError, nearest

COLUMNS = ("task", "input", "targets", "choices", "split", "held_out", "category", "definition", "id")

MISSING: Any = object()
"""What `look_up` gives for a column that a row does not have."""


def look_up(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column. Where none is called `name`, its parts between dots lead into objects, and integers into lists:
    "translation.de", "answers.text.0"."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split(".") if "." in name else [MISSING]:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, (list, tuple)) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def not_found(row: Mapping[str, Any], name: str) -> str:
    """Which columns a row has instead of the one called `name`, the nearest one named, and the way on."""
    near = difflib.get_close_matches(name, list(_names(row)), n=1, cutoff=0.7)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"it has {', '.join(map(str, row)) or 'none'}{meant}; a column map can name another"


def _names(row: Mapping[str, Any], before: str = "", depth: int = 3) -> Iterator[str]:
    for key, value in row.items():
        yield before + str(key)
        if isinstance(value, Mapping) and depth:
            yield from _names(value, f"{before}{key}.", depth - 1)


def check_column_map(column_map: Mapping[str, str]) -> None:
    for name in column_map:
        if name not in COLUMNS:
            raise ConfigError(f"unknown column {name!r} in the column map: {nearest(name, COLUMNS)}")
