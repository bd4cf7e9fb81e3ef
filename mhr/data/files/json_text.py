"""JSON: one object a line, a list of objects, or an object that holds such a list under "data" and the like."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mhr.data.files.format import BadRow, RowTable, reads_files
from mhr.data.forms import form_of
from mhr.data.opening import FileFault, read_text

CONTAINERS = ("data", "rows", "examples", "instances", "items", "records", "entries")
"""Keys under which an object may hold the list of rows."""

_SPACE = re.compile(r"[ \t\r\n]*")


class _Broken(ValueError):
    def __init__(self, message: str, position: int = 0):
        super().__init__(message)
        self.position = position


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Broken(f"key {twice!r} appears twice in one object: keep one")
    return made


def _constant(name: str) -> Any:
    raise _Broken(f"{name} is not JSON: write null or a string")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


@reads_files("json", ".jsonl", ".ndjson", ".json")
def read_json_rows(file: Path) -> RowTable:
    """The rows of a JSON file, whichever way it holds them."""
    text = read_text(file)
    return RowTable(_rows(text))


def _rows(text: str) -> Iterator[tuple[int, Any]]:
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        _end(text, (yield from _list(text, start)))
    elif _has_lines(text):
        yield from _lines(text)
    else:
        yield from _objects(text, start)


def _has_lines(text: str) -> bool:
    """Whether one of the first two lines that are not empty is a whole object (the other may be broken), and not a container
    that is alone in the file."""
    lines = [found.group() for found in islice(re.finditer(r"[^\n]*\S[^\n]*", text), 2)]
    values = []
    for line in lines:
        with contextlib.suppress(_Broken):
            values.append(_decode(line, _skip(line, 0))[0])
    whole = [value for value in values if isinstance(value, dict)]
    return bool(whole) and (len(lines) > 1 or _container(whole[0]) is None)


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    # U+2028 and its like are no ends of lines here: JSON may hold them as they are.
    for number, line in enumerate(text.split("\n"), 1):
        start = _skip(line, 0)
        if start == len(line):
            continue
        try:
            value, end = _decode(line, start)
            if _skip(line, end) < len(line):
                raise _Broken("more than one value", end)
        except _Broken as error:
            message = f"is not valid JSON: {error} at column {error.position + 1}; expected one object a line"
            yield number, BadRow(message)
            continue
        yield number, _checked(value)


def _list(text: str, start: int) -> Generator[tuple[int, Any], None, int]:
    """The items of a list that begins at `start`, each on the line of its first character. Returns where the list ends."""
    line, counted = 1, 0
    position = _skip(text, start + 1)
    if text[position : position + 1] == "]":
        return position + 1
    while True:
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = _decode(text, position)
        except _Broken as error:
            raise _fault(text, error) from None
        yield line, _checked(value)
        position = _skip(text, position)
        if text[position : position + 1] == "]":
            return position + 1
        if text[position : position + 1] != ",":
            raise _fault(text, _Broken("expected a comma or the end of the list", position))
        position = _skip(text, position + 1)


def _objects(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Objects one after another, over several lines each; or one that is a container."""
    position, first = start, True
    while position < len(text):
        line = text.count("\n", 0, position) + 1
        try:
            value, end = _decode(text, position)
        except _Broken as error:
            raise _fault(text, error) from None
        alone = first and _skip(text, end) == len(text)
        inside = _container(value) if alone else None
        if inside is not None:
            yield from _list(text, _place_of(text, position, inside))
            return
        yield line, _checked(value)
        first, position = False, _skip(text, end)


def _place_of(text: str, position: int, key: str) -> int:
    """Where the list of a container begins."""
    position = _skip(text, position + 1)
    while True:
        name, position = _decode(text, position)
        position = _skip(text, _skip(text, position) + 1)
        if name == key:
            return position
        position = _skip(text, _skip(text, _decode(text, position)[1]) + 1)


def _container(value: Any) -> str | None:
    """The key under which an object holds rows; None for one that is a row itself."""
    if not isinstance(value, dict) or "input" in value or form_of(value):
        return None
    lists = [key for key in CONTAINERS if isinstance(value.get(key), list)]
    return lists[0] if len(lists) == 1 and all(isinstance(row, dict) for row in value[lists[0]]) else None


def _checked(value: Any) -> Any:
    return value if isinstance(value, dict) else BadRow(f"expected a JSON object, got {json.dumps(value):.60}")


def _decode(text: str, position: int) -> tuple[Any, int]:
    try:
        return _decoder.raw_decode(text, position)
    except _Broken as error:
        raise _Broken(str(error), position) from None
    except json.JSONDecodeError as error:
        raise _Broken(error.msg, error.pos) from None
    except RecursionError:
        raise _Broken("it is nested too deeply", position) from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise _Broken(str(error).partition(";")[0], position) from None


def _end(text: str, position: int) -> None:
    position = _skip(text, position)
    if position < len(text):
        raise _fault(text, _Broken("more behind the list", position))


def _fault(text: str, error: _Broken) -> FileFault:
    line = text.count("\n", 0, error.position) + 1
    column = error.position - text.rfind("\n", 0, error.position)
    cut = (
        " (the file seems to be truncated)"
        if error.position >= len(text.rstrip()) or "Unterminated" in str(error)
        else ""
    )
    return FileFault(line, f"is not valid JSON: {error} at column {column}{cut}")


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None, "it matches nothing as well"
    return found.end()
