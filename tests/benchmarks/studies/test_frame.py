"""What studies share: work side by side, tasks in a file, and choices that are made once and committed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mhr.data import load_tasks
from mhr.data.skills import skills_suite
from mhr.locks import locked
from mhr_benchmarks.studies import trials_first
from mhr_benchmarks.studies.choices import best, freeze, frozen, is_committed
from mhr_benchmarks.studies.task_files import lines_of, write_collection
from mhr_benchmarks.studies.trials_first import command_of_setting, parser_of_settings, published_in, run_study
from mhr_benchmarks.studies.workers import side_by_side

PLAN = {"rates": (0.1, 0.3), "seed": 100}
METHODS = {"mhr": {"lr": 0.1}}


def test_pieces_come_in_their_order_and_one_that_fails_ends_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    done = side_by_side(abs, [-3, 2, "no number"], 2, str)
    assert [next(done), next(done)] == [(-3, 3), (2, 2)]
    with pytest.raises(TypeError):
        next(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines if "minutes passed" in line] == ["1/3 -3", "2/3 2"]


def test_workers_end_with_the_process_that_they_work_for() -> None:
    code = "import time; from mhr_benchmarks.studies.workers import side_by_side; list(side_by_side(time.sleep, [0, 600], 1, str))"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as study:
        assert study.stderr is not None
        assert "1/2 0" in study.stderr.readline()  # so that the worker is at the second piece
        workers = psutil.Process(study.pid).children()
        try:
            study.terminate()
            gone, left = psutil.wait_procs(workers, timeout=30)
        finally:
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()
    assert study.returncode == -signal.SIGTERM
    assert gone
    assert not left


def test_a_piece_waits_for_a_worker_of_an_ended_study_that_is_still_at_it(tmp_path: Path) -> None:
    piece = SimpleNamespace(folder="suite/units/lora-1")
    begun, made = threading.Event(), threading.Event()

    def do(asked: object, output: Path) -> None:
        assert (asked, output) == (piece, tmp_path)
        made.set()

    def work() -> None:
        begun.set()
        trials_first.alone(do, piece, tmp_path)

    other = threading.Thread(target=work)
    with locked(tmp_path / piece.folder):
        other.start()
        assert begun.wait(10)
        assert not made.wait(0.5)
    other.join(10)
    assert made.is_set()


def test_tasks_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    tasks = skills_suite(0, 20, 10).select(["rev-last", "rev-twice"])
    file = write_collection(
        tmp_path / "new" / "tasks.jsonl", tasks.values(), {"rev-last": (5, 3), "rev-twice": (20, 0)}
    )
    read = load_tasks(file)
    assert {name: (len(task.train), len(task.test)) for name, task in read.items()} == {
        "rev-last": (5, 3), "rev-twice": (20, 0),
    }  # fmt: skip
    for name, task in read.items():
        assert task.train == tasks[name].train[: len(task.train)]
        assert (task.held_out, task.category, task.choices) == (
            tasks[name].held_out, tasks[name].category, tasks[name].choices,
        )  # fmt: skip
    assert lines_of([], "train") == ""


def test_the_best_rate_is_the_lowest_of_those_with_the_best_score() -> None:
    assert best({0.1: 0.5, 0.3: 0.7, 1.0: 0.7}) == 0.3


def test_choices_are_made_once_and_belong_to_their_plan(tmp_path: Path) -> None:
    file = tmp_path / "new" / "study.json"
    assert frozen(file, PLAN) is None
    freeze(file, PLAN, METHODS)
    assert frozen(file, PLAN, committed=False) == METHODS
    with pytest.raises(SystemExit, match="choices are made once"):
        freeze(file, PLAN, METHODS)
    with pytest.raises(SystemExit, match="trials with another plan"):
        frozen(file, {**PLAN, "seed": 101}, committed=False)


def test_test_seeds_wait_for_the_commit(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    file = freeze(tmp_path / "study.json", PLAN, METHODS)
    assert not is_committed(file)  # no repository at all
    subprocess.run([*git, "init", "-q"], check=True)
    with pytest.raises(SystemExit, match="not committed as it is"):
        frozen(file, PLAN)
    subprocess.run([*git, "add", file.name], check=True)
    assert not is_committed(file)
    subprocess.run([*git, "commit", "-qm", "choices"], check=True)
    assert frozen(file, PLAN) == METHODS
    file.write_text(file.read_text().replace("0.1", "0.2", 1))
    assert not is_committed(file)


def test_a_study_runs_its_trials_and_then_its_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials_first, "FOLDER", tmp_path / "choices")
    ran: list[object] = []

    def run_all(do: object, pieces: list[object], output: Path, workers: int) -> None:
        ran.extend(pieces)
        if "stop" in pieces:
            raise KeyboardInterrupt

    monkeypatch.setattr(trials_first, "run_all", run_all)
    monkeypatch.setattr(trials_first, "states_of", lambda pieces, output: pieces)

    def run(*flags: str, pieces: Sequence[Any] = ("a", "b")) -> str:
        args = parser_of_settings("", ["suite", "real"]).parse_args(["--output", str(tmp_path / "output"), *flags])

        def trials(file: Path) -> None:
            ran.append(file)
            freeze(file, PLAN, METHODS)

        run_study(
            "quag", args, plan=PLAN, trials=trials, do=lambda piece, output: None,
            pieces=lambda chosen, seeds: list(pieces)[:seeds], publish=lambda chosen, own: f"{chosen} {own}",
        )  # fmt: skip
        return capsys.readouterr().out

    assert "Nothing was chosen" in run("--quick", "--only-publish")
    assert not ran
    assert "Commit it" in run("--setting", "real")
    assert ran == [tmp_path / "choices" / "quag_real.json"]
    with pytest.raises(SystemExit, match="not committed as it is"):
        run("--setting", "real")
    ran.clear()
    assert f"{METHODS} ['a', 'b']" in run("--quick")
    assert ran == [tmp_path / "output" / "quag_suite.json", "a", "b"]
    assert run("--quick", "--only-publish") == f"{METHODS} ['a', 'b']\n"
    assert len(ran) == 3
    with pytest.raises(SystemExit, match="the same command goes on"):
        run("--quick", pieces=["stop"])


def test_a_quick_study_leaves_the_usual_folders_alone(tmp_path: Path) -> None:
    usual, given = tmp_path / "usual", tmp_path / "given"
    assert parser_of_settings("").parse_args(["--output", str(tmp_path)]).setting is None
    for flags, folder in (((), usual), (("--quick",), tmp_path)):
        args = parser_of_settings("", ["suite"]).parse_args(["--output", str(tmp_path), *flags])
        assert published_in(args, None, usual) == folder
        assert published_in(args, given, usual) == given
        command = "python -m mhr_benchmarks.studies.quag --output DIR --setting suite"
        assert command_of_setting("quag", args) == " ".join([command, *flags])
