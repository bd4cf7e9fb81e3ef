"""CSV and TSV with a header line that names the columns. Fault lines are those on which a row ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from mhr.data.files.format import BadRow, RowTable, reads_files
from mhr.data.opening import FileFault, read_text

HINT = "; the first line of the file has to name its columns"

# A cell may be a whole document; csv's own limit is 128 kB.
csv.field_size_limit(2**31 - 1)


@reads_files("csv", ".csv")
def read_csv(file: Path) -> RowTable:
    """Cells between commas, quoted where needed; between semicolons or tabs where the header has more of those."""
    text = read_text(file)
    header = text.lstrip("\r\n").partition("\n")[0]
    return _table(list(_quoted(text, max(",;\t", key=header.count))))


@reads_files("tsv", ".tsv")
def read_tsv(file: Path) -> RowTable:
    """Cells between tabs. Quotes around a cell count where the file was written with them, and are text otherwise."""
    text = read_text(file)
    plain = [(n, line.rstrip("\r").split("\t")) for n, line in enumerate(text.split("\n"), 1) if line.strip("\r")]
    try:
        quoted = list(_quoted(text, "\t"))
    except FileFault:
        return _table(plain)
    if len(quoted) < len(plain) and len({len(cells) for _, cells in plain}) == 1:
        # Both readings are tables: a quote that opens a cell of plain text may swallow lines up to the next one.
        line = next(q for (q, _), (p, _) in zip(quoted, plain, strict=False) if q != p)
        raise FileFault(line, "a quoted cell may span lines, or its quotes be text: quote no cell, or save it as CSV")
    return _table(quoted)


def _quoted(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in lines:
            if cells:
                yield lines.line_num, cells
    except csv.Error as error:
        raise FileFault(lines.line_num, f"cannot be read as a table: {error}") from None


def _table(lines: list[tuple[int, list[str]]]) -> RowTable:
    if not lines:
        return RowTable(iter(()))
    number, header = lines[0][0], [name.strip() for name in lines[0][1]]
    twice = [name for name in header if header.count(name) > 1]
    if twice or not all(header):
        what = f"names column {twice[0]!r} twice" if twice and twice[0] else "leaves the name of a column empty"
        raise FileFault(number, f"the first line {what}: it has to name the columns")
    return RowTable(_rows(lines[1:], header), hint=HINT)


def _rows(lines: list[tuple[int, list[str]]], header: list[str]) -> Iterator[tuple[int, dict[str, str] | BadRow]]:
    for number, cells in lines:
        if len(cells) != len(header):
            yield number, BadRow(f"the row has {len(cells)} cells, and the first line names {len(header)} columns")
        else:
            yield number, dict(zip(header, cells, strict=True))
