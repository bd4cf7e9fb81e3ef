"""What a file of rows is to its readers: a format, recognised by the ending of the name, and the table that it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.data.opening import bare_name
from mhr.registry import Registry


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is none, and why."""

    message: str


@dataclass(frozen=True, slots=True)
class RowTable:
    """rows: (line, columns) one by one; a line counts from 1, lines of text or rows of a table
    labels: names of the class indices in a column, where the file knows them
    hint: what to say where a row lacks a column"""

    rows: Iterator[tuple[int, Mapping[str, Any] | BadRow]]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hint: str = ""


@dataclass(frozen=True, slots=True)
class FileFormat:
    """endings: of the names of its files, lower case; read: a file's table. It raises FileFault, and so may the rows."""

    endings: tuple[str, ...]
    read: Callable[[Path], RowTable]


file_formats: Registry[FileFormat] = Registry("file format")


def reads_files(name: str, *endings: str) -> Callable[[Callable[[Path], RowTable]], Callable[[Path], RowTable]]:
    """Register a function as the reader of files with these endings."""

    def decorate(read: Callable[[Path], RowTable]) -> Callable[[Path], RowTable]:
        file_formats.register(name)(FileFormat(endings, read))
        return read

    return decorate


def format_of(path: Path) -> str | None:
    """The name of a file's format, by its ending; packed files (.gz, .zst) by the ending before."""
    name = bare_name(path)
    return next((n for n, f in file_formats.items() if name.endswith(f.endings)), None)


def stem_of(path: Path) -> str:
    """A file's name without its endings."""
    form = format_of(path)
    name = path.name[: len(bare_name(path))]
    endings = () if form is None else file_formats[form].endings
    return next((name[: -len(e)] for e in endings if name.lower().endswith(e)), name)


def known_endings() -> str:
    return ", ".join(ending for f in file_formats.values() for ending in f.endings)
