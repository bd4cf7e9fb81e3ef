"""Rows in files: one file, a folder of files, or a folder of folders, in any format of this package."""

from __future__ import annotations

from pathlib import Path

from mhr.data.example import TaskCollection
from mhr.data.faults import Faults, Notes, has_surrogate
from mhr.data.files.format import BadRow, file_formats, format_of, known_endings
from mhr.data.files.layout import Placed, place_files
from mhr.data.opening import PACKINGS, FileFault
from mhr.data.reading import ReadOptions, finish, reads
from mhr.data.rows import RowReader


def holds_rows(path: str) -> bool:
    """Whether a path is a file of a known format, or a folder of such files."""
    root = Path(path)
    return format_of(root) is not None if root.is_file() else root.is_dir() and bool(place_files(root)[0])


LAYOUT = f"files of rows ({known_endings()}, each also {' or '.join(PACKINGS)})"


@reads("files", holds_rows, LAYOUT, uses=("column_map", "max_test"), words=True, fallback=True)
def read_files(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    """Rows of every file, in the tasks and splits that they name, or else that their file's name and folder tell."""
    notes = Notes()
    rows = RowReader(options, faults)
    placed, beside = place_files(Path(path))
    if beside:
        notes.add(f"folders beside the files of rows were left out: {', '.join(beside[:4])}")
    for place in placed:
        _read(place, rows, faults, notes)
    return finish(path, rows.finish(notes), notes, faults, rows.recognised)


def _read(place: Placed, rows: RowReader, faults: Faults, notes: Notes) -> None:
    if has_surrogate(place.file.name, place.task):
        faults.add(place.file, 0, "its name is not UTF-8: rename the file")
        return
    form = format_of(place.file)
    assert form is not None, "files are placed by their format"
    rows.begin(str(place.file), form, place.task, place.split)
    count = 0
    try:
        table = file_formats[form].read(place.file)
        rows.labels, rows.hint = table.labels, table.hint
        for line, row in table.rows:
            count += 1
            if isinstance(row, BadRow):
                faults.row(place.file, line, row.message, place.task)
            else:
                rows.add(row, line)
    except FileFault as error:
        faults.add(place.file, error.line, str(error))
        return
    if not count:
        notes.add(f"{place.file} holds no rows")
