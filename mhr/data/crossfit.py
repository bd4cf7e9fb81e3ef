"""CrossFit's folders of few-shot draws: TASK/TASK_16_SEED_{train,dev,test}.tsv, each line an input and its answers.

The first draw of a task by name is read (16_100 in the published data): the training rows of one draw are the development
rows of another. Ye et al. 2021, arXiv 2104.08835.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from mhr.data.example import TaskCollection
from mhr.data.faults import Faults, Notes
from mhr.data.opening import FileFault, read_text
from mhr.data.reading import ReadOptions, finish, reads
from mhr.data.rows import RowReader

_NAME = re.compile(r"(?P<task>.+)_(?P<draw>\d+_\d+)_(?P<split>train|dev|test)\.tsv")


def is_crossfit(path: str) -> bool:
    """Whether a path is a file of such a name in the folder of its task, that folder, or a folder of those."""
    return bool(_files(Path(path)))


@reads(
    "crossfit",
    is_crossfit,
    "a CrossFit folder (TASK/TASK_16_100_train.tsv)",
    uses=("column_map", "max_test"),
    words=True,
)
def read_crossfit(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    """One task a folder."""
    notes = Notes()
    rows = RowReader(options, faults)
    by_task: dict[str, dict[str, list[tuple[Path, str]]]] = defaultdict(lambda: defaultdict(list))
    for file, name in _files(Path(path)):
        by_task[name["task"]][name["draw"]].append((file, name["split"]))
    for task, draws in by_task.items():
        first = min(draws)
        if len(draws) > 1:
            notes.add(f"of its draws {first} is read, the others are left out", task, str(len(draws)))
        for file, split in draws[first]:
            rows.begin(str(file), "CrossFit TSV", task, split)
            _read(file, task, rows, faults)
    return finish(path, rows.finish(notes), notes, faults, rows.recognised)


def _read(file: Path, task: str, rows: RowReader, faults: Faults) -> None:
    try:
        text = read_text(file)
    except FileFault as error:
        faults.add(file, error.line, str(error))
        return
    for line, cells in enumerate((line.rstrip("\r").split("\t") for line in text.split("\n")), 1):
        if cells == [""]:
            continue
        if len(cells) < 2:
            faults.row(file, line, "expected an input, a tab and an answer", task)
        else:
            rows.add({"input": cells[0], "targets": [cell for cell in cells[1:] if cell.strip()] or ""}, line)


def _files(root: Path) -> list[tuple[Path, re.Match[str]]]:
    files = [root] if root.is_file() else sorted([*root.glob("*.tsv"), *root.glob("*/*.tsv")])
    named = [(file, _NAME.fullmatch(file.name)) for file in files]
    return [(file, name) for file, name in named if name and name["task"] == file.absolute().parent.name]
