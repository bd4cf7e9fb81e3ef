"""Sweeps: runs x modes x tasks x seeds, each with its grid, in one resumable command and one table.

DIR/sweep.json        the settings that all rows share, and what was asked for last
DIR/results.jsonl     one row for each adaptation that is done or has failed, appended whole as it ends
DIR/results.parquet   the same as a table, written at the end
DIR/units/RUN/MODE/TASK/SEED    the adapted runs
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mhr.backbones import load_backbone
from mhr.data import TaskCollection
from mhr.errors import ConfigError, TrainingError
from mhr.few_shot.adapting import few_shot_settings, fitting_tasks, named_tasks
from mhr.few_shot.launchers import launchers
from mhr.few_shot.selecting import read_dev, share_out
from mhr.few_shot.starts import check_mode
from mhr.few_shot.units import Study, Unit
from mhr.files import (
    make_folder,
    prepare_output,
    read_json,
    write_bytes_atomically,
    write_json_atomically,
    writing,
)
from mhr.locks import one_writer
from mhr.runs.config import flat, to_dict
from mhr.runs.run import RunFolder, clear
from mhr.runs.settings import RunConfig
from mhr.training.signals import Interrupted

SWEEP_FILE = "sweep.json"
RESULTS_FILE = "results.jsonl"
TABLE_FILE = "results.parquet"

Row = dict[str, Any]


@dataclass(frozen=True)
class SweepResult:
    """rows: what results.jsonl holds, one a unit, in the order asked for; notes: combinations that were left out, and why."""

    path: Path
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row["status"] == "failed"]

    def summary(self) -> list[Row]:
        """By run, mode and task, and over all tasks (task None): mean of the score over seeds, its standard deviation, and n.

        The deviation over all tasks is that of the seeds' means. Units that have failed are left out.
        """
        done = [row for row in self.rows if row["status"] == "done"]
        found = []
        for run, mode in dict.fromkeys((row["run"], row["mode"]) for row in done):
            own = [row for row in done if (row["run"], row["mode"]) == (run, mode)]
            for task in dict.fromkeys(row["task"] for row in own):
                scores = [row["score"] for row in own if row["task"] == task]
                found.append({"run": run, "mode": mode, "task": task, **_spread(scores)})
            seeds = dict.fromkeys(row["seed"] for row in own)
            means = [statistics.fmean(row["score"] for row in own if row["seed"] == seed) for seed in seeds]
            found.append({"run": run, "mode": mode, "task": None, **_spread(means)})
        return found


@one_writer
def sweep(
    runs: Sequence[str],
    tasks: Sequence[str] | None = None,
    *,
    modes: Sequence[str],
    output: str,
    tasks_path: str | None = None,
    template: str | None = None,
    limit: int | None = None,
    launcher: str = "local",
    workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    **few: Any,
) -> SweepResult:
    """Adapt every run in every mode to every task with every seed, evaluate each result once on its test examples, and keep
    a table.

    runs        pretraining runs. A mode that a run does not allow is left out, and noted, where another run allows it
    tasks, tasks_path, template, few    as in `adapt`; the seeds are few["seeds"]
    limit       test examples a task, the first ones; None takes all
    launcher    "local" (processes on this machine), or "ray" (a Ray cluster; the folders must be on a file system that its
                machines share)
    workers     processes; None: one for each GPU, otherwise for each core
    resume      go on: units whose rows say that they are done are skipped, those that failed are tried again. Further runs,
                modes, tasks and seeds may be asked for; the other settings must be those of the table

    Raises ConfigError, TaskError, DataError and CheckpointError for what does not fit, before anything is written, and
    TrainingError for a folder that holds another sweep, and at the end where units have failed; Interrupted on Ctrl-C.
    """
    launch = launchers[launcher](workers)
    folder = Path(output)
    known = _known_names(folder) if resume else {}
    study, units, notes = _plan(runs, known, tasks, modes, output, tasks_path, template, limit, few)
    described = {"settings": study.identity, "axes": _axes(units), "notes": notes}
    _open(folder, described, overwrite=overwrite, resume=resume)
    rows = _read_rows(folder / RESULTS_FILE)
    left = [unit for unit in units if rows.get(unit.key, {}).get("status") != "done"]
    with _progress(progress) as bar:
        job = bar.add_task("sweep", total=len(units), completed=len(units) - len(left))
        try:
            if left:
                with closing(launch(study, left)) as finished:
                    for row in finished:
                        append_row(folder / RESULTS_FILE, row)
                        rows[Unit.key_of(row)] = row
                        bar.advance(job)
        except KeyboardInterrupt:
            done = sum(row["status"] == "done" for row in rows.values())
            raise Interrupted(f"{done} of {len(units)} units are done") from None
    write_table(folder / TABLE_FILE, rows.values())
    result = SweepResult(folder, [rows[unit.key] for unit in units], notes)
    if result.failed:
        first = result.failed[0]
        raise TrainingError(
            f"{len(result.failed)} of {len(units)} units failed, first {'/'.join(map(str, Unit.key_of(first)))}: "
            f"{first['error']}; --resume tries them again"
        )
    return result


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line, on the disk when it returns: a kill leaves all of it or a cut last line."""
    line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with writing(path), open(path, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The rows as a Parquet table, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    # Rows that failed lack columns, and trials have the knobs of their mode only.
    plain = [{key: json.dumps(value) if key == "trials" else value for key, value in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in plain for name in row))
    table = pyarrow.table({name: [row.get(name) for row in plain] for name in names})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    write_bytes_atomically(path, buffer.getvalue())


def _plan(
    runs: Sequence[str],
    known: Mapping[str, str],
    tasks: Sequence[str] | None,
    modes: Sequence[str],
    output: str,
    tasks_path: str | None,
    template: str | None,
    limit: int | None,
    few: dict[str, Any],
) -> tuple[Study, list[Unit], list[str]]:
    """What all units share, the units, and what was left out."""
    names = _names(runs, known)
    sources = {name: RunFolder.open(run) for name, run in names.items()}
    configs = {name: few_shot_settings(run.config(), tasks_path, template, few) for name, run in sources.items()}
    for source in sources.values():
        source.result()
    allowed, notes = _allowed(names, configs, modes)
    units: list[Unit] = []
    shared: dict[str, Any] = {}
    for name, config in configs.items():
        shared[name] = {
            "path": str(sources[name].path.resolve()),
            "trained": _fingerprint(sources[name]),
            "adapt": {k: v for k, v in to_dict(config)["adapt"].items() if k != "seeds"},
        }
        collection = _fitting(named_tasks(config, tasks), sources[name], config, tasks is not None)
        dev = read_dev(config)
        for mode in allowed[name]:
            for task in collection.values():
                for seed in config.adapt.seeds:
                    share_out(task, config.adapt, seed, mode, dev)  # too few examples are told before anything is done
                    units.append(Unit(names[name], name, mode, task.name, seed))
    identity = {"runs": shared, "tasks": tasks_path, "template": template, "limit": limit}
    # A mode may be asked for by two names.
    return Study(output, tasks_path, template, limit, few, identity), list(dict.fromkeys(units)), notes


def _fitting(collection: TaskCollection, source: RunFolder, config: RunConfig, named: bool) -> TaskCollection:
    """The tasks that a run can be adapted to. The base model is loaded only where inputs have to be measured."""
    kind = source.info["model_kind"]
    measured = config.data.fit and not named
    tokenizer = load_backbone(source.info["base"], kind)[1] if measured else None
    return fitting_tasks(collection, named, kind, tokenizer, config)[0]


def _known_names(folder: Path) -> dict[str, str]:
    """The path of each run that the table in a folder has -> its name there."""
    file = folder / SWEEP_FILE
    runs = read_json(file, TrainingError)["settings"]["runs"] if file.is_file() else {}
    return {run["path"]: name for name, run in runs.items()}


def _names(runs: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """A short name for every run: the one that is known, or the last part of its path and as much before it as tells them apart."""
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise ConfigError("a run is given twice: name each run once")
    for n in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = [known.get(str(path)) or "/".join(path.parts[-n:]) for path in paths]
        others = [name for path, name in known.items() if Path(path) not in paths]
        if len({*names, *others}) == len(names) + len(others):
            return dict(zip(names, map(str, runs), strict=True))
    raise ConfigError("no run is given: name at least one")


def _allowed(
    names: Mapping[str, str], configs: Mapping[str, RunConfig], modes: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The modes of each run, and a note for every combination that does not go together."""
    allowed: dict[str, list[str]] = {name: [] for name in names}
    faults: dict[str, ConfigError] = {}
    for mode in dict.fromkeys(modes):
        for name, run in names.items():
            try:
                allowed[name].append(check_mode(mode, configs[name], run))
            except ConfigError as error:
                faults[f"{name} {mode}"] = error
        if not any(f"{name} {mode}" not in faults for name in names):
            raise next(error for key, error in faults.items() if key.endswith(f" {mode}"))
    for name in names:
        if not allowed[name]:
            raise next(error for key, error in faults.items() if key.startswith(f"{name} "))
    return allowed, [f"left out: {error}" for error in faults.values()]


def _fingerprint(run: RunFolder) -> str:
    """What tells a run from another one at the same place: the digest of its description, which holds that of its weights."""
    for file in (run.adapter / "mhr_config.json", run.path / "run.json"):
        if file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return ""


def _axes(units: Sequence[Unit]) -> dict[str, list[Any]]:
    return {
        "runs": list(dict.fromkeys(u.name for u in units)),
        "modes": list(dict.fromkeys(u.mode for u in units)),
        "tasks": list(dict.fromkeys(u.task for u in units)),
        "seeds": list(dict.fromkeys(u.seed for u in units)),
    }


def _open(folder: Path, described: dict[str, Any], *, overwrite: bool, resume: bool) -> None:
    """The folder of the sweep, made or found. Raises TrainingError where it holds another one.

    Runs may be added to a sweep: only those that both have are compared, and those not asked for now stay on record.
    """
    known = folder / SWEEP_FILE
    if known.is_file() and (resume or not overwrite):
        settings, before = described["settings"], read_json(known, TrainingError)["settings"]
        shared = settings["runs"].keys() & before["runs"].keys()
        one, two = (flat({**s, "runs": {name: s["runs"][name] for name in shared}}) for s in (before, settings))
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key):
                raise TrainingError(
                    f"{folder} holds the table of another sweep, with {key} {one.get(key)!r}, not {two.get(key)!r}: ask for "
                    "the same, or choose another output folder"
                )
        if not resume:
            raise TrainingError(
                f"{folder} holds this sweep already: go on with --resume, or start over with --overwrite"
            )
        described = described | {"settings": settings | {"runs": before["runs"] | settings["runs"]}}
    else:
        prepare_output(folder, overwrite)
        clear(make_folder(folder))
    write_json_atomically(known, described)


def _read_rows(path: Path) -> dict[tuple[Any, ...], Row]:
    """The last row of each unit. A line that a kill has cut is taken out of the file, so that the next one begins a line."""
    if not path.is_file():
        return {}
    whole, end, cut = path.read_bytes().rpartition(b"\n")  # bytes: a cut may go through a letter
    if cut:
        write_bytes_atomically(path, whole + end)
    rows = (json.loads(line) for line in whole.splitlines())
    return {Unit.key_of(row): row for row in rows}


def _spread(scores: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(scores) if len(scores) > 1 else None
    return {"mean": statistics.fmean(scores), "std": deviation, "n": len(scores)}


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
