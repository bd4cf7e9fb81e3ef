"""GLUE as its authors distribute it: CoLA/train.tsv, MNLI/dev_matched.tsv and so on, plain cells between tabs.

Quotes are text. Columns have the names of the task's Hugging Face dataset here, whatever the files call them, and tasks too ("SST-2" is
"sst2"), so that what is written for one fits the other. Test files have no labels and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mhr.data.example import TaskCollection
from mhr.data.faults import Faults, Notes
from mhr.data.forms.glue import GLUE, LABEL, glue_name
from mhr.data.opening import FileFault, read_text
from mhr.data.reading import ReadOptions, finish, reads
from mhr.data.rows import RowReader

FILES = {
    "train.tsv": "train",
    "dev.tsv": "validation",
    "dev_matched.tsv": "validation_matched",
    "dev_mismatched.tsv": "validation_mismatched",
    "test.tsv": "test",
    "test_matched.tsv": "test_matched",
    "test_mismatched.tsv": "test_mismatched",
}
"""Names of files, and the names of their splits in the datasets."""

_ALSO = {
    "sentence1": ("#1 String",),
    "sentence2": ("#2 String",),
    "premise": ("sentence1",),
    "hypothesis": ("sentence2",),
    LABEL: ("gold_label", "is_duplicate", "Quality", "score"),
}
"""Column -> its names in the files, where these differ."""


class Columns(NamedTuple):
    """header: whether the first line names the columns; width: cells of a line; places: column -> its cell."""

    header: bool
    width: int
    places: dict[str, int]


def columns_of(task: str, cells: list[str]) -> Columns | None:
    """What the first line of a file tells of its columns; None where it lacks the label, or is of another layout."""
    places = {}
    for column in (*GLUE[task].texts, LABEL):
        name = next((name for name in (column, *_ALSO.get(column, ())) if name in cells), None)
        if name is None:
            break
        places[column] = cells.index(name)
    else:
        return Columns(True, len(cells), places)
    if task == "cola" and len(cells) == 4 and cells[1] in ("0", "1"):
        return Columns(False, 4, {"sentence": 3, LABEL: 1})
    return None


def is_glue(path: str) -> bool:
    """Whether a path is a task's folder, a folder of those, or a file in one."""
    return bool(_files(Path(path)))


@reads("glue", is_glue, "GLUE's own layout (CoLA/train.tsv, MNLI/dev_matched.tsv ...)", uses=("max_test",), words=True)
def read_glue_files(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    """One task a folder."""
    notes = Notes()
    rows = RowReader(options, faults)
    root = Path(path)
    files = _files(root)
    others = [] if root.is_file() or glue_name(root.absolute().name) else sorted(p.name for p in root.iterdir())
    left = [
        name for name in others if root / name not in {file.parent for file, _ in files} and not name.startswith(".")
    ]
    if left:
        notes.add(f"what is none of GLUE's tasks was left out: {', '.join(left[:4])}")
    for task in dict.fromkeys(task for _, task in files):
        if len(folders := sorted({file.parent.name for file, of in files if of == task})) > 1:
            faults.add(path, 0, f"the folders {' and '.join(folders)} are both of task {task}: keep one")
            return finish(path, [], notes, faults)
    for file, task in files:
        rows.begin(str(file), "GLUE TSV", task, FILES[file.name])
        try:
            lines = _lines(read_text(file))
        except FileFault as error:
            faults.add(file, error.line, str(error))
            continue
        columns = columns_of(task, next(lines, (0, []))[1])
        if columns is None:
            if FILES[file.name].startswith("test"):
                notes.add("the labels of test files are withheld, so they were left out", task)
            else:
                wanted = ", ".join([*GLUE[task].texts, LABEL])
                faults.add(
                    file, 1, f"the first line names no columns of {task}: expected {wanted} or GLUE's own names of them"
                )
            continue
        for line, cells in _lines(read_text(file)):
            if columns.header and line == 1:
                continue
            if len(cells) != columns.width:
                faults.row(file, line, f"the row has {len(cells)} cells, and the first line {columns.width}", task)
            else:
                rows.add({column: cells[place] for column, place in columns.places.items()}, line)
    return finish(path, rows.finish(notes), notes, faults, rows.recognised)


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip("\r"):
            yield number, line.rstrip("\r").split("\t")


def _files(root: Path) -> list[tuple[Path, str]]:
    """The files at a path that are of GLUE's layout, and their tasks, in GLUE's order."""
    if root.is_file():
        return _of_task(root.absolute().parent, root) if root.name in FILES else []
    if not root.is_dir():
        return []
    if own := _of_task(root):
        return own
    found = [pair for folder in sorted(root.iterdir()) if folder.is_dir() for pair in _of_task(folder)]
    return sorted(found, key=lambda pair: list(GLUE).index(pair[1]))


def _of_task(folder: Path, only: Path | None = None) -> list[tuple[Path, str]]:
    """The files of a task's folder, where the first line of one that has labels is as GLUE has it."""
    task = glue_name(folder.absolute().name)
    if task is None or folder.absolute().name.lower().replace("-", "") != task:
        return []
    files = [only] if only else [file for name in FILES if (file := folder / name).is_file()]
    if not any(columns_of(task, _first_cells(file)) for file in files):
        return []
    return [(file, task) for file in files]


def _first_cells(file: Path) -> list[str]:
    try:
        return next(_lines(read_text(file)), (0, []))[1]
    except FileFault:
        return []
