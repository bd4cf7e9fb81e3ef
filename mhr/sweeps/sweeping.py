"""Sweeps: runs x modes x tasks x seeds, each with its grid, in one resumable command and one table.

DIR/sweep.json        the settings that all rows share, and the units that were asked for last
DIR/results.jsonl     one row for each adaptation that is done or has failed, appended whole as it ends
DIR/results.parquet   the same as a table, written at the end
DIR/units/RUN/MODE/TASK/SEED    the adapted runs
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mhr.errors import ConfigError, TrainingError
from mhr.files import make_folder, prepare_output, read_json, write_json_atomically
from mhr.loading import Loading
from mhr.locks import one_writer
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.config import flat
from mhr.runs.run import clear
from mhr.runs.scoring import ScoringConfig
from mhr.sweeps.launchers import launchers
from mhr.sweeps.planning import plan
from mhr.sweeps.table import SweepResult, append_row, key_of, read_rows, write_table
from mhr.training.signals import Interrupted

SWEEP_FILE = "sweep.json"
RESULTS_FILE = "results.jsonl"
TABLE_FILE = "results.parquet"


@one_writer
def sweep(
    runs: Sequence[str],
    tasks: Sequence[str] | None = None,
    *,
    modes: Sequence[str],
    output: str,
    tasks_path: str | None = None,
    template: str | None = None,
    prompt: str | None = None,
    verbalizers: dict[str, str] | None = None,
    on_bad_row: str | None = None,
    base: str | None = None,
    loading: Loading | None = None,
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
    tasks, tasks_path, template, prompt, verbalizers, on_bad_row, base, loading, few    as in `adapt`; the seeds are few["seeds"]
    limit       test examples a task, the first ones; None takes all
    launcher    "local" (processes on this machine), or "ray" (a Ray cluster; the folders must be on a file system that its
                machines share)
    workers     processes; None: one for each GPU, otherwise for each core
    resume      go on: units whose rows say that they are done are skipped, those that failed are tried again. Further runs,
                modes, tasks and seeds may be asked for; the other settings must be those of the table

    Raises ConfigError, TaskError, DataError and CheckpointError for what does not fit, before anything is written, and
    TrainingError for a folder that holds another sweep, and at the end where units have failed; Interrupted on Ctrl-C.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("sweep starts its processes by itself: start it without torchrun")
    ScoringConfig(limit=limit)
    changed = {
        "tasks": tasks_path,
        "template": template,
        "prompt": prompt,
        "verbalizers": verbalizers,
        "on_bad_row": on_bad_row,
        "model": base,
        "loading": loading or Loading(),
    }
    launch = launchers[launcher](workers)
    folder = Path(output)
    known = _known_names(folder) if resume else {}
    planned = plan(runs, known, tasks, modes, folder, changed, limit, few)
    study = planned.study
    described = {"settings": study.identity, "units": planned.units(), "notes": planned.notes}
    _open(folder, described, planned.reads, overwrite=overwrite, resume=resume)
    rows = read_rows(folder / RESULTS_FILE)
    keys = {adaptation: key_of(study.row(adaptation)) for adaptation in planned.adaptations}
    for (adaptation, key), data in zip(keys.items(), planned.data, strict=True):
        if rows.get(key, {}).get("data", data) != data:
            raise TrainingError(
                f"{folder} holds a row of task {adaptation.task!r} that was made of other examples than the collection of run "
                f"{adaptation.run} now gives: make it what it was, or choose another output folder"
            )
    left = [adaptation for adaptation, key in keys.items() if rows.get(key, {}).get("status") != "done"]
    with _progress(progress) as bar:
        job = bar.add_task("sweep", total=len(keys), completed=len(keys) - len(left))
        try:
            if left:
                with closing(launch(study, left)) as finished:
                    for row in finished:
                        append_row(folder / RESULTS_FILE, row)
                        rows[key_of(row)] = row
                        bar.advance(job)
        except KeyboardInterrupt:
            done = sum(rows.get(key, {}).get("status") == "done" for key in keys.values())
            raise Interrupted(f"{done} of {len(keys)} adaptations are done") from None
    write_table(folder / TABLE_FILE, rows.values())
    result = SweepResult(folder, [rows[key] for key in keys.values()], planned.notes)
    if result.failed:
        first = result.failed[0]
        raise TrainingError(
            f"{len(result.failed)} of {len(keys)} units failed, first {'/'.join(map(str, key_of(first)))}: "
            f"{first['error']}; --resume tries them again"
        )
    return result


def _known_names(folder: Path) -> dict[str, str]:
    """The path of each run that the table in a folder has -> its name there."""
    file = folder / SWEEP_FILE
    runs = read_json(file, TrainingError)["settings"]["runs"] if file.is_file() else {}
    return {run["path"]: name for name, run in runs.items()}


def _open(
    folder: Path, described: dict[str, Any], reads: Iterable[str | Path | None], *, overwrite: bool, resume: bool
) -> None:
    """The folder of the sweep, made or found. Raises TrainingError where it holds another one.

    Runs may be added to a sweep: only those that both have are compared, and those not asked for now stay on record.
    """
    known = folder / SWEEP_FILE
    if known.is_file() and (resume or not overwrite):
        settings, before = described["settings"], read_json(known, TrainingError)["settings"]
        for run in before["runs"].values():  # a setting that an earlier release did not have had its default
            run["adapt"] = {k: v for k, v in AdaptConfig().to_dict().items() if k != "seeds"} | run["adapt"]
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
        prepare_output(folder, overwrite, reads)
        clear(make_folder(folder))
    write_json_atomically(known, described)


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
