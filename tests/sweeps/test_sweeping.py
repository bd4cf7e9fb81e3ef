"""Sweeps: one row a unit, resumable after a kill, the same by every launcher, and refused over another study."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
import torch

from mhr.errors import ConfigError, DataError, MhrError, TrainingError
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapting
from mhr.report.sources import read_sources
from mhr.runs import RunFolder
from mhr.runs.tasks import read_tasks
from mhr.sweeps import SweepResult, launchers, sweep, worker
from mhr.sweeps.table import append_row
from mhr.sweeps.worker import Worker

Source = Callable[[str], RunFolder]
TASKS = ["next-first", "swap-last"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A launcher that works in this process; the list holds the task of every unit that was made."""
    made: list[str] = []

    def launch(study: Any, units: Any) -> Any:
        worker = Worker(study)
        for unit in units:
            made.append(unit.task)
            yield worker.work(unit)

    monkeypatch.setitem(launchers.launchers._items, "here", lambda workers: launch)
    return made


@pytest.fixture
def swept(source: Source, tmp_path: Path) -> Callable[..., SweepResult]:
    def run(methods: tuple[str, ...] = ("mhr",), **settings: Any) -> SweepResult:
        defaults: dict[str, Any] = {
            "modes": ["mu"],
            "output": str(tmp_path / "sweep"),
            "steps": 2,
            "launcher": "here",
            "progress": False,
        }
        return sweep([str(source(method).path) for method in methods], **{**defaults, **settings})

    return run


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_combination_has_a_row(swept: Any, here: list[str], tmp_path: Path, source: Source) -> None:
    result = swept(("mhr", "lora"), modes=["z", "mu"], seeds=[1, 2], grid={"lr": [1e-2, 1e-3]})
    keys = [(row["run"], row["mode"], row["task"], row["seed"]) for row in result.rows]
    runs = {method: result.rows[0 if method == "mhr" else -1]["run"] for method in ("mhr", "lora")}
    expected = [(runs["mhr"], mode, task, seed) for mode in ("z", "mu") for task in TASKS for seed in (1, 2)]
    expected += [(runs["lora"], "mu", task, seed) for task in TASKS for seed in (1, 2)]
    assert keys == expected
    assert len(result.notes) == 1
    assert "its routing is not learned" in result.notes[0]
    for row in result.rows:
        assert (row["status"], row["protocol"], row["n"], row["shots"]) == ("done", "held-out", 4, 8)
        assert 0 <= row["score"] <= 1
        # Mode z has no learning rate of adapters to search.
        assert len(row["trials"]) == (0 if row["mode"] == "z" else 2)
        assert row["chosen_on"] == (None if row["mode"] == "z" else "a quarter of the shots")
        assert (Path(row["folder"]) / "adapter").is_dir()
    table = pyarrow.parquet.read_table(tmp_path / "sweep" / "results.parquet").to_pylist()
    assert [row["score"] for row in table] == [row["score"] for row in rows_of(tmp_path / "sweep")]
    (mean,) = [row for row in result.summary() if row["task"] is None and row["mode"] == "z"]
    scores = [row["score"] for row in result.rows if row["mode"] == "z"]
    assert mean["mean"] == pytest.approx(sum(scores) / 4)
    assert mean["n"] == 2


def test_what_a_sweep_lacks_is_told_by_its_report(swept: Any, here: list[str], tmp_path: Path) -> None:
    """Modes that a run does not allow are no units that are missing."""
    result = swept(("mhr", "lora"), modes=["z", "mu"], seeds=[1], tasks=TASKS)
    assert not any("missing" in note for note in read_sources([tmp_path / "sweep"]).notes)
    lines = (tmp_path / "sweep" / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "sweep" / "results.jsonl").write_bytes(b"".join(lines[1:]))
    (note,) = [note for note in read_sources([tmp_path / "sweep"]).notes if "missing" in note]
    assert f"1 of the 6 units of the sweep is missing, such as {result.rows[0]['run']}/z/next-first/1" in note


def test_runs_routed_by_contexts_are_swept(swept: Any, here: list[str]) -> None:
    result = swept(("context-mhr", "mhr"), tasks=TASKS[:1], seeds=[1], modes=["z"])
    assert [row["status"] for row in result.rows] == ["done", "done"]
    assert [row["method"] for row in result.rows] == ["context-mhr", "mhr"]
    assert result.rows[0]["trained"] == 32  # the context of the task


def test_a_sweep_begun_before_a_setting_was_there_is_resumed(swept: Any, here: list[str], tmp_path: Path) -> None:
    swept(tasks=TASKS[:1], seeds=[1], modes=["z"])
    file = tmp_path / "sweep" / "sweep.json"
    described = json.loads(file.read_text("utf-8"))
    for run in described["settings"]["runs"].values():
        for name in ("start", "similarity", "encoder"):
            del run["adapt"][name]
    file.write_text(json.dumps(described), "utf-8")
    swept(tasks=TASKS[:1], seeds=[1], modes=["z"], resume=True)
    assert here == TASKS[:1]
    with pytest.raises(TrainingError, match="adapt.start 'fresh', not 'nearest'"):
        swept(tasks=TASKS[:1], seeds=[1], modes=["z"], resume=True, start="nearest")


def test_first_rows_are_those_of_every_run_of_a_sweep(swept: Any, here: list[str]) -> None:
    result = swept(("mhr", "poly"), tasks=TASKS[:1], seeds=[1], modes=["z", "mu"], start="nearest", steps=0)
    for row in result.rows:
        told = RunFolder.open(row["folder"]).info.get("start")
        assert (told is None) == (row["mode"] == "mu")  # which has no row
    with pytest.raises(
        ConfigError, match="start is 'nearest', but a run of method 'mhr' in mode 'mu' begins with no row"
    ):
        swept(tasks=TASKS[:1], seeds=[1], modes=["mu"], start="nearest")


def test_what_is_done_is_skipped_and_more_can_be_asked_for(swept: Any, here: list[str], tmp_path: Path) -> None:
    first = swept(tasks=TASKS[:1], seeds=[1])
    assert here == TASKS[:1]
    again = swept(tasks=TASKS[:1], seeds=[1], resume=True)
    assert here == TASKS[:1]
    assert again.rows == first.rows
    more = swept(tasks=TASKS, seeds=[1], resume=True)
    assert here == TASKS
    assert more.rows[0] == first.rows[0]
    assert len(rows_of(tmp_path / "sweep")) == 2
    with pytest.raises(TrainingError, match="holds this sweep already: go on with --resume"):
        swept(tasks=TASKS, seeds=[1])
    swept(tasks=TASKS[:1], seeds=[1], overwrite=True)
    assert here == [*TASKS, TASKS[0]]
    assert len(rows_of(tmp_path / "sweep")) == 1


def test_further_runs_can_be_asked_for(swept: Any, here: list[str], tmp_path: Path) -> None:
    """Those asked for before stay on record, so that they cannot come back with other settings."""
    first = swept(("mhr",), tasks=TASKS[:1], seeds=[1])
    both = swept(("mhr", "lora"), tasks=TASKS[:1], seeds=[1], resume=True)
    assert both.rows[0] == first.rows[0]
    other = swept(("lora",), tasks=TASKS[:1], seeds=[1], resume=True)
    assert other.rows == both.rows[1:]
    assert len(here) == 2
    with pytest.raises(TrainingError, match=r"table of another sweep, with runs\..*adapt\.steps 2, not 3"):
        swept(("mhr",), tasks=TASKS[:1], seeds=[1], steps=3, resume=True, overwrite=True)
    assert [row["status"] for row in rows_of(tmp_path / "sweep")] == ["done", "done"]


def test_a_mode_by_two_names_is_one(swept: Any, here: list[str]) -> None:
    assert len(swept(tasks=TASKS[:1], seeds=[1], modes=["mhr", "poly"]).rows) == 1
    assert here == TASKS[:1]


def test_units_are_judged_as_their_grid_has_chosen(swept: Any, here: list[str], tmp_path: Path) -> None:
    (row,) = swept(tasks=TASKS[:1], seeds=[1], grid={"length_norm": [0.0]}, select="best").rows
    loaded = load_model(row["folder"])
    assert loaded.length_norm == 0.0
    judged: list[float] = []

    def ask(*arguments: Any, length_norm: float, **settings: Any) -> Any:
        judged.append(length_norm)
        return evaluate(*arguments, length_norm=length_norm, **settings)

    (tmp_path / "sweep" / "results.jsonl").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "evaluate", ask)
        (again,) = swept(tasks=TASKS[:1], seeds=[1], grid={"length_norm": [0.0]}, select="best", resume=True).rows
    assert judged == [0.0]
    assert again["score"] == row["score"]


def test_a_unit_that_was_trained_but_not_told_is_evaluated_alone(swept: Any, here: list[str], tmp_path: Path) -> None:
    (row,) = swept(tasks=TASKS[:1], seeds=[1]).rows
    file = tmp_path / "sweep" / "results.jsonl"
    file.write_bytes('{"run": "ä'.encode()[:-1])  # a kill has cut the line, in the middle of a letter
    trained = (Path(row["folder"]) / "run.json").stat().st_mtime_ns
    (again,) = swept(tasks=TASKS[:1], seeds=[1], resume=True).rows
    assert (Path(row["folder"]) / "run.json").stat().st_mtime_ns == trained
    assert {**again, "seconds": None} == {**row, "seconds": None}
    assert rows_of(tmp_path / "sweep") == [again]


def test_a_unit_that_fails_is_told_and_tried_again(
    swept: Any, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Worker._work

    def fail(self: Worker, unit: Any) -> Any:
        if unit.task == TASKS[1]:
            raise TrainingError("the loss is nan")
        return work(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_work", fail)
        with pytest.raises(TrainingError, match=r"1 of 2 units failed, first .*swap-last/1: the loss is nan; --resume"):
            swept(seeds=[1])
    assert [row["status"] for row in rows_of(tmp_path / "sweep")] == ["done", "failed"]
    assert pyarrow.parquet.read_table(tmp_path / "sweep" / "results.parquet").num_rows == 2
    result = swept(seeds=[1], resume=True)
    assert [row["status"] for row in result.rows] == ["done", "done"]
    assert here == [*TASKS, TASKS[1]]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"steps": 3}, TrainingError, r"table of another sweep, with runs\..*adapt\.steps 2, not 3"),
        ({"protocol": "paper"}, TrainingError, r"adapt\.protocol 'held-out', not 'paper'"),
        ({"limit": 2}, TrainingError, "with limit None, not 2"),
        (
            {"grid": {"lrr": [1.0]}},
            ConfigError,
            "grid has 'lrr', which is no hyperparameter of a grid: did you mean 'lr'",
        ),
        ({"shots": 25}, DataError, "has 24 training examples, fewer than the 25 shots"),
        ({"seeds": [1, 1]}, ConfigError, "expected each seed once"),
        ({"modes": ["zz"]}, ConfigError, "mode is 'zz'"),
        ({"modes": []}, ConfigError, "modes is empty: name at least one of mhr, z"),
        ({"limit": 0}, ConfigError, "limit is 0, expected"),
        ({"router_lr": 0.5}, ConfigError, "router_lr is 0.5, but mode 'mu' does not train routing"),
        ({"tasks": []}, DataError, "tasks is empty"),
        ({"modes": ["lora"]}, ConfigError, "its adapter is not shared by all tasks"),
        ({"launcher": "slurm"}, ConfigError, "unknown launcher 'slurm'"),
        ({"workers": 0, "launcher": "local"}, ConfigError, "workers is 0"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_table_stays(
    changes: dict[str, Any], error: type[MhrError], said: str, swept: Any, here: list[str], tmp_path: Path
) -> None:
    swept(tasks=TASKS[:1], seeds=[1])
    before = (tmp_path / "sweep" / "results.jsonl").read_bytes()
    with pytest.raises(error, match=said) as caught:
        swept(**{"tasks": TASKS, "seeds": [1], "resume": True, **changes})
    assert "\n" not in str(caught.value)
    assert (tmp_path / "sweep" / "results.jsonl").read_bytes() == before


def test_a_run_that_was_trained_again_is_another_one(swept: Any, here: list[str], source: Source) -> None:
    swept(tasks=TASKS[:1], seeds=[1])
    config = source("mhr").adapter / "mhr_config.json"
    before = config.read_text()
    try:
        config.write_text(before + " ")
        with pytest.raises(TrainingError, match=r"another sweep, with runs\..*\.trained"):
            swept(tasks=TASKS[:1], seeds=[1], resume=True)
    finally:
        config.write_text(before)


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_of_other_examples_are_not_resumed(
    split: str, swept: Any, here: list[str], tasks_file: Path, tmp_path: Path
) -> None:
    file, results = tmp_path / "tasks.jsonl", tmp_path / "sweep" / "results.jsonl"
    rows = [json.loads(line) for line in tasks_file.read_text().splitlines()]
    file.write_text(tasks_file.read_text())
    swept(tasks=TASKS[:1], seeds=[1], tasks_path=str(file))
    before = results.read_bytes()
    changed = [row | {"input": row["input"] + "a"} if row["split"] == split else row for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in changed))
    with pytest.raises(TrainingError, match="holds a row of task 'next-first' that was made of other examples"):
        swept(tasks=TASKS, seeds=[1], tasks_path=str(file), resume=True)
    assert results.read_bytes() == before
    file.write_text(tasks_file.read_text())
    swept(tasks=TASKS, seeds=[1], tasks_path=str(file), resume=True)
    assert here == TASKS


def test_rows_are_appended_whole(tmp_path: Path) -> None:
    for i in range(3):
        append_row(tmp_path / "rows.jsonl", {"i": i, "text": "ä\nb"})
    assert [json.loads(line)["i"] for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()] == [0, 1, 2]


# ---- processes -------------------------------------------------------------------------------------------------------

PROGRAM = """
import json, sys
from mhr.sweeps import sweep

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    runs = settings.pop("runs")
    print(len(sweep(runs, **settings).rows))
"""


# Ray takes a process for dead that is slow to start or to answer, and ends workers where memory is short, as on a busy machine.
PATIENT_RAY = {
    "OMP_NUM_THREADS": "1",  # as in this process, so that equal sums are equal
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_health_check_initial_delay_ms": "600000",
    "RAY_health_check_timeout_ms": "600000",
    "RAY_memory_monitor_refresh_ms": "0",
}


def children_of(pid: int) -> list[int]:
    """Its children and theirs."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    children = [int(line) for line in found.stdout.split()]
    return [*children, *(further for child in children for further in children_of(child))]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_was(source: Source, tmp_path: Path, here: list[str]) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    output = tmp_path / "sweep"
    settings = {
        "runs": [str(source("mhr").path)],
        "tasks": TASKS,
        "modes": ["mhr", "mu"],
        "seeds": [1],
        "steps": 60,
        "workers": 2,
        "output": str(output),
        "progress": False,
        "resume": True,
    }
    command = [sys.executable, str(program), json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    results = output / "results.jsonl"
    while time.monotonic() < deadline and process.poll() is None and not (results.is_file() and rows_of(output)):
        time.sleep(0.05)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.05)
    assert not any(map(alive, workers))
    before = rows_of(output)
    assert 0 < len(before) < 4
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "4"
    after = rows_of(output)
    assert after[: len(before)] == before
    assert len({(row["mode"], row["task"], row["seed"]) for row in after}) == len(after) == 4
    # Processes change nothing of what comes out.
    alone = sweep([str(source("mhr").path)], TASKS[:1], modes=["mu"], seeds=[1], steps=60, launcher="here",
                  output=str(tmp_path / "alone"), progress=False)  # fmt: skip
    (same,) = [row for row in after if (row["mode"], row["task"], row["seed"]) == ("mu", TASKS[0], 1)]
    assert same["score"] == alone.rows[0]["score"]


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_unit_alone(source: Source, tmp_path: Path, monkeypatch: Any) -> None:
    begun: list[Any] = []
    take = launchers._Hand.take

    def kill_the_first(self: Any, unit: Any) -> None:
        take(self, unit)
        if not begun:
            os.kill(self.process.pid, signal.SIGKILL)
        begun.append(unit)

    monkeypatch.setattr(launchers._Hand, "take", kill_the_first)
    settings: dict[str, Any] = {"modes": ["mu"], "seeds": [1], "steps": 2, "workers": 1, "progress": False}
    with pytest.raises(TrainingError, match="1 of 2 units failed.*its process ended with signal SIGKILL"):
        sweep([str(source("mhr").path)], TASKS, output=str(tmp_path / "sweep"), **settings)
    assert [row["status"] for row in rows_of(tmp_path / "sweep")] == ["failed", "done"]


def test_tasks_that_are_left_out_are_said(
    swept: Any, here: list[str], source: Source, tmp_path: Path, tasks_file: Path
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    alone = [
        {"task": "alone", "input": "x", "targets": "a", "split": split, "held_out": True} for split in ("train", "test")
    ]
    tasks.write_text(tasks_file.read_text() + "".join(json.dumps(row) + "\n" for row in alone))
    run = source("mhr")
    with pytest.MonkeyPatch.context() as patch:  # a run of a model that takes tasks with choices only
        patch.setattr("mhr.few_shot.adapting.usable_tasks", leave_out)
        result = swept(seeds=[1], tasks_path=str(tasks))
    assert result.notes == [f"left out: task 'alone' of run {run.path}: it has no choices"]
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["notes"] == result.notes
    assert [row["task"] for row in result.rows] == TASKS


def leave_out(collection: Any, *arguments: Any) -> Any:
    return collection.select([name for name in collection if name != "alone"]), {"alone": "it has no choices"}


def test_a_table_that_was_edited_is_named_with_its_line(swept: Any, here: list[str], tmp_path: Path) -> None:
    swept(tasks=TASKS[:1], seeds=[1])
    with open(tmp_path / "sweep" / "results.jsonl", "a") as file:
        file.write('{"run": 1}\n')
    with pytest.raises(TrainingError, match=r"results.jsonl:2 is no row of a sweep"):
        swept(tasks=TASKS[:1], seeds=[1], resume=True)


@pytest.mark.parametrize(
    ("told", "workers", "threads"), [("3", 1, None), ("3", 2, None), (None, 1, 8), (None, 3, 2), (None, 20, 1)]
)
def test_threads_are_those_that_the_user_says_or_a_share_of_the_cores(
    told: str | None, workers: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int | None] = []

    class Hand:
        def __init__(self, study: Any, gpu: Any, threads: int | None):
            given.append(threads)
            raise KeyboardInterrupt

    monkeypatch.setattr(launchers, "_Hand", Hand)
    monkeypatch.setattr(launchers, "_visible_gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    with pytest.raises(KeyboardInterrupt):
        list(launchers.local_launcher(workers)(None, [None] * 20))  # type: ignore[arg-type,list-item]
    assert given == [threads]


@pytest.mark.parametrize("threads", [None, 2])
def test_a_worker_sets_threads_where_the_user_has_said_nothing(threads: int | None, monkeypatch: Any) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(launchers, "_leave_with_parent", lambda: None)
    monkeypatch.setattr(launchers, "Worker", lambda study: SimpleNamespace(work=None))
    # What it was begun with; afterwards all is as it was.
    monkeypatch.setattr(os, "environ", {"MHR_TOLD": "before", "MHR_GONE": "before"})
    launchers._serve(Closed(), None, None, threads, {"MHR_TOLD": "now"})  # type: ignore[arg-type]
    assert os.environ == {"MHR_TOLD": "now"}
    assert asked == ([] if threads is None else [threads])
    gc.unfreeze()


class Closed:
    def recv(self) -> Any:
        raise EOFError

    def send(self, row: Any) -> None:
        raise AssertionError


RAY_PROGRAM = """
import json, sys
import ray
from mhr.sweeps import sweep

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    print(json.dumps(sweep(settings.pop("runs"), **settings).rows))
"""


@pytest.mark.slow
def test_two_workers_of_a_local_ray_cluster(source: Source, swept: Any, tmp_path: Path, here: list[str]) -> None:
    # In a process of its own: the threads that Ray leaves behind would be missing in what later tests fork from this one.
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'mhr[ray]')")
    program = tmp_path / "program.py"
    program.write_text(RAY_PROGRAM)
    settings = {
        "runs": [str(source("mhr").path)],
        "modes": ["mu"],
        "seeds": [1, 2],
        "steps": 2,
        "launcher": "ray",
        "workers": 2,
        "output": str(tmp_path / "ray"),
        "progress": False,
    }
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(settings)],
        env={**os.environ, **PATIENT_RAY},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    local = swept(seeds=[1, 2], output=str(tmp_path / "local"))
    columns = ("mode", "task", "seed", "score", "lr", "steps")
    assert [[row[c] for c in columns] for row in rows] == [[row[c] for c in columns] for row in local.rows]
    assert here == [task for task in TASKS for _ in (1, 2)]


def test_a_sweep_is_not_started_several_times_at_once(
    swept: Any, here: list[str], source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source("mhr")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match="sweep starts its processes by itself: start it without torchrun"):
        swept(tasks=TASKS[:1], seeds=[1])
    assert not (tmp_path / "sweep").exists()
    assert here == []


def test_without_ray_the_launcher_says_what_to_install(
    swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"launcher 'ray' needs Ray: pip install 'mhr\[ray\]'"):
        swept(seeds=[1], launcher="ray")
    assert not (tmp_path / "sweep").exists()


def test_a_unit_without_memory_is_a_row_with_the_reason(
    swept: Callable[..., SweepResult], here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = worker.make
    tried: list[str] = []

    def full(adaptation: Any, prepared: Any, bar: Any) -> Any:
        tried.append(adaptation.task)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none")
        return make(adaptation, prepared, bar)

    monkeypatch.setattr(worker, "make", full)
    told = r"out of memory \(CUDA out of memory\): use a smaller batch size, rank or model; --resume tries"
    with pytest.raises(TrainingError, match=rf"1 of 2 units failed, first .*: {told}"):
        swept(tasks=TASKS, seeds=[1])
    assert tried == TASKS  # the next one is made


def test_collections_are_read_once_for_all_runs_and_modes(
    swept: Callable[..., SweepResult], here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    for module in (adapting, worker):
        monkeypatch.setattr(module, "read_tasks", lambda path, *a, **k: read.append(path) or read_tasks(path, *a, **k))
    swept(("mhr", "lora"), tasks=TASKS[:1], modes=["mu", "full"], seeds=[1])
    assert len(read) == 2  # by the plan, and by the one worker
