"""CrossFit's folders: one draw of each task, without a header, several answers in a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhr.data import load_tasks
from mhr.errors import DataError


def write(root: Path, task: str, draw: str, n: int = 3) -> Path:
    folder = root / task
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        text = "".join(f"{split} {draw} {i}\tanswer {i}\tother\n" for i in range(n))
        (folder / f"{task}_{draw}_{split}.tsv").write_text(text)
    return root


def test_the_first_draw_of_each_task_is_read(tmp_path: Path) -> None:
    for task, draw in (("glue-sst2", "16_13"), ("glue-sst2", "16_100"), ("ade", "16_100")):
        write(tmp_path, task, draw)
    tasks = load_tasks(tmp_path)
    assert list(tasks) == ["ade", "glue-sst2"]
    assert [(e.input, e.targets) for e in tasks["glue-sst2"].train][:1] == [("train 16_100 0", ("answer 0", "other"))]
    assert {e.input.split()[0] for e in tasks["ade"].test} == {"test"}
    assert "glue-sst2 (2): of its draws 16_100 is read, the others are left out" in tasks.notes
    assert list(load_tasks(tmp_path / "ade")) == ["ade"]


def test_a_line_without_an_answer_is_told(tmp_path: Path) -> None:
    write(tmp_path, "ade", "16_100")
    file = tmp_path / "ade" / "ade_16_100_train.tsv"
    file.write_text("a\tb\nc\n")
    with pytest.raises(DataError, match=rf"{file}:2: expected an input, a tab and an answer"):
        load_tasks(tmp_path)
