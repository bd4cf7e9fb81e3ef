from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mhr.data import load_tasks
from mhr.data.load import find_reader
from mhr.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("files", "reader"),
    [
        (["tasks/a.json"], "superni"),
        (["splits/default/train_tasks.txt"], "superni"),
        (["dataset_dict.json"], "datasets"),
        (["state.json"], "datasets"),
        (["a.jsonl"], "files"),
        (["a.parquet"], "files"),
        (["a/b.CSV.gz"], "files"),
        (["sums/sums_16_100_train.tsv"], "crossfit"),
    ],
)
def test_a_folder_is_known_by_what_it_holds(tmp_path: Path, files: list[str], reader: str):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_reader(str(tmp_path)) == reader


def test_other_paths():
    assert find_reader("builtin:skills") == "skills"
    assert find_reader("allenai/ai2_arc") == "datasets"


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="is an empty folder: expected a CrossFit folder"):
        load_tasks(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="is a folder of no known layout"):
        load_tasks(tmp_path)
    with pytest.raises(DataError, match=r"cannot tell the format of a \.txt file"):
        load_tasks(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="no such file or folder"):
        load_tasks(tmp_path / "missing")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(DataError, match="no such file or folder"):
        load_tasks(f"{tmp_path.name}/missing")
    with pytest.raises(ConfigError, match="the path of the task collection is empty"):
        load_tasks("")
    with pytest.raises(ConfigError, match="did you mean 'builtin:skills'"):
        load_tasks("builtin:skill")


def test_a_folder_without_any_task_is_told(tmp_path: Path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match="no task was found"):
        load_tasks(tmp_path)


def test_options_out_of_range_are_told():
    for option in ("max_train", "limit_test", "positives"):
        with pytest.raises(ConfigError, match=f"{option} is -1, expected 0 or more"):
            load_tasks("builtin:skills", **{option: -1})
    with pytest.raises(ConfigError, match="unknown task reader 'file': did you mean 'files'"):
        load_tasks("builtin:skills", reader="file")


def test_reading_does_not_import_torch():
    code = "import sys, mhr.data.check; assert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
