"""One writer per output folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from mhr.errors import MhrError, TrainingError
from mhr.files import prepare_output
from mhr.locks import locked, one_writer

HOLD = """
import sys
from mhr.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path/out until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path, holder):
    told = rf"out is being written by process {holder.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: "
    with pytest.raises(TrainingError, match=told), locked(tmp_path / "out"):
        pass
    with locked(tmp_path / "other"), locked(None):
        pass


def test_the_same_folder_by_another_name_is_the_same_folder(tmp_path, holder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match="is being written"), locked("deep/../out/"):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, holder, end):
    os.kill(holder.pid, end)
    holder.wait()
    assert (tmp_path / ".out.lock").exists()
    with locked(tmp_path / "out"):
        assert str(os.getpid()) in (tmp_path / ".out.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path / "a" / "b" / "out"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_leaves_the_folder_empty_for_the_check_of_outputs(tmp_path):
    with locked(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        assert prepare_output(tmp_path / "out") == tmp_path / "out"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_where_no_lock_can_be_made_the_check_of_the_folder_speaks(tmp_path):
    (tmp_path / "file").write_text("")
    with locked(tmp_path / "file" / "out"), pytest.raises((MhrError, OSError)):
        (tmp_path / "file" / "out").mkdir(parents=True)


def test_a_function_locks_its_output_and_the_other_processes_of_torchrun_do_not(tmp_path, holder, monkeypatch):
    @one_writer
    def write(*, output: str, overwrite: bool = False) -> str:
        """What it does."""
        return output

    assert write.__doc__ == "What it does."
    with pytest.raises(TrainingError, match="is being written"):
        write(output=str(tmp_path / "out"))
    monkeypatch.setenv("RANK", "1")
    assert write(output=str(tmp_path / "out")) == str(tmp_path / "out")
