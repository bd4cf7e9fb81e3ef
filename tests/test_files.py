"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mhr.errors import CheckpointError, MhrError
from mhr.files import (
    folder_name,
    held_in,
    make_folder,
    prepare_output,
    read_json,
    write_json_atomically,
    write_text_atomically,
    writing_folder,
)
from mhr.runs.run import RunFolder


def test_a_file_is_replaced_and_no_temporary_stays(tmp_path):
    path = tmp_path / "run.json"
    write_json_atomically(path, {"status": "running"})
    write_json_atomically(path, {"status": "done", "name": "é"})
    assert read_json(path) == {"status": "done", "name": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_text_atomically(tmp_path / "a.txt", "old")

    def fail(source, target):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(MhrError, match="cannot write .*a.txt: .*; free some space"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []

    def sync(handle):
        done.append(os.readlink(f"/proc/self/fd/{handle}"))

    def replace(source, target, move=os.replace):
        done.append("renamed")
        move(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_json_atomically(tmp_path / "a.json", {"a": 1})
    assert [str(path).endswith(end) for path, end in zip(done, (".tmp", "renamed", tmp_path.name), strict=True)]
    with writing_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        done.clear()
    assert done[0].endswith("inner/file")


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError):
        write_json_atomically(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "out"
    with writing_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    with writing_folder(target) as folder:
        (folder / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_failed_folder_keeps_the_old_one(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), writing_folder(target):
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_moved_in_brings_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("1")
    rename, calls = os.rename, []

    def fail_second(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(MhrError, match="Permission denied"), writing_folder(target):
        pass
    assert (target / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def interrupted(path):
    with writing_folder(path) as folder:
        (folder / "new").write_text("1")
        raise KeyboardInterrupt


def two_files(path):
    with writing_folder(path) as folder:
        for name in "ab":
            (folder / name).write_text("2")


@pytest.mark.parametrize("held", [False, True], ids=["empty", "full"])
@pytest.mark.parametrize("place", ["working directory", "mount point", "link"])
def test_a_folder_that_has_to_stay_is_filled(place, held, tmp_path, monkeypatch):
    target = tmp_path / "folder"
    target.mkdir()
    if held:
        (target / "sub").mkdir()
        (target / "sub" / "old").write_text("1")
    asked = target
    if place == "working directory":
        monkeypatch.chdir(target)
        asked = Path()
    elif place == "mount point":
        monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    else:
        asked = tmp_path / "link"
        asked.symlink_to(target)
    before = target.stat().st_ino
    with pytest.raises(KeyboardInterrupt):
        interrupted(asked)
    assert held_in(target) == (["sub"] if held else [])
    with writing_folder(asked) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "new").write_text("2")
        assert not (target / "sub" / "new").exists()
    assert [str(path.relative_to(target)) for path in sorted(target.rglob("*"))] == ["sub", "sub/new"]
    assert sorted(os.listdir(tmp_path)) == (["folder", "link"] if place == "link" else ["folder"])
    assert place == "link" or target.stat().st_ino == before
    assert place != "link" or asked.is_symlink()


def test_a_folder_that_cannot_be_filled_is_as_it_was(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("1")
    monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    rename = os.rename

    def full(old, new):
        if Path(new) == target / "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(old, new)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(MhrError, match="No space left"):
        two_files(target)
    assert os.listdir(target) == ["old"]


def test_output_folders(tmp_path):
    assert prepare_output(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert not (tmp_path / "new").exists()
    assert prepare_output(make_folder(tmp_path / "empty")) == tmp_path / "empty"

    used = make_folder(tmp_path / "used")
    (used / "run.json").write_text("{}")
    with pytest.raises(MhrError, match="is not empty: choose another, or pass --overwrite"):
        prepare_output(used)
    assert prepare_output(used, overwrite=True) == used


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_overwrite_spares_models_and_adapters_of_others(tmp_path, name):
    """A base model that `--output` names by mistake is not the output of an earlier run."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(MhrError, match="no output of mhr"):
        prepare_output(tmp_path, overwrite=True)
    (tmp_path / "merge_report.json").write_text("{}")
    assert prepare_output(tmp_path, overwrite=True) == tmp_path


def test_a_folder_that_holds_what_is_read_is_no_output(tmp_path, monkeypatch):
    run = make_folder(tmp_path / "run")
    (run / "run.json").write_text("{}")
    make_folder(run / "adapter")
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    for read in (run, "run", run / "adapter", tmp_path / "link"):
        with pytest.raises(MhrError, match=f"output folder {run} holds the input {read}: choose another"):
            prepare_output(run, overwrite=True, reads=[None, "google/flan-t5-base", read])
    assert prepare_output(run, overwrite=True, reads=[None, "", "nowhere", tmp_path]) == run
    assert prepare_output(run / "adapted", reads=[run]) == run / "adapted"


def test_overwrite_spares_a_folder_that_is_no_output(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MhrError, match="holds thesis.tex and no output of mhr"):
        prepare_output(tmp_path, overwrite=True)


def test_what_a_killed_process_was_writing_does_not_fill_a_folder(tmp_path):
    """A process that is killed between making a folder and its first file must not bar the next one from it."""
    program = (
        "import os, sys\n"
        "from mhr import files\n"
        "os.replace = lambda *paths: os._exit(9)\n"
        "files.write_json_atomically(files.make_folder(sys.argv[1]) / 'run.json', {})\n"
    )
    run = tmp_path / "run"
    assert subprocess.run([sys.executable, "-c", program, str(run)], check=False).returncode == 9
    (left,) = (entry.name for entry in run.iterdir())
    assert left.startswith(".run.json.")
    for overwrite in (False, True):
        assert prepare_output(run, overwrite) == run
    for resume in (False, True):
        assert RunFolder.create(run, resume=resume).info == {}
    (run / "thesis.tmp").write_text("years of work")
    with pytest.raises(MhrError, match=r"holds thesis\.tmp and no output of mhr"):
        prepare_output(run, overwrite=True)


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(MhrError, match="is a file"):
        prepare_output(tmp_path / "out")
    with pytest.raises(MhrError, match="cannot write"):
        make_folder(tmp_path / "out" / "deeper")


def test_no_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(MhrError, match="no permission to write in"):
        prepare_output(tmp_path / "out" / "deeper")


def test_json_faults_name_file_and_line(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(CheckpointError, match="cannot read .*No such file"):
        read_json(path, CheckpointError)
    path.write_text('{\n "a": 1,\n')
    with pytest.raises(CheckpointError, match=r"a.json:\d is no valid JSON"):
        read_json(path, CheckpointError)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="no text in UTF-8"):
        read_json(path, CheckpointError)
    path.write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="nested too deep"):
        read_json(path, CheckpointError)
    path.write_text('{"a": ' + "9" * 5000 + "}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(path, CheckpointError)


def test_a_name_that_file_systems_have_no_room_for_is_shortened_and_stays_its_own(tmp_path):
    long = ["語" * 29, "語" * 30, "語" * 29 + "a", "x" * 256, "x" * 257]
    folders = [folder_name(name) for name in long]
    assert len(set(folders)) == len(long)
    assert folder_name("x" * 255) == "x" * 255
    for folder in folders:
        (tmp_path / folder).mkdir()
        assert folder_name(folder) != folder  # so no name of a task is the folder of a longer one


@pytest.mark.parametrize(
    ("name", "folder"), [("boolq", "boolq"), ("a b", "a b"), ("glue/rte", "glue%2Frte"), ("..", "%2E%2E"), (".", "%2E")]
)
def test_any_name_is_a_folder_of_its_own(tmp_path, name, folder):
    assert folder_name(name) == folder
    assert (tmp_path / folder_name(name)).resolve().parent == tmp_path.resolve()
