"""The unit of a sweep: one adaptation, evaluated on its test examples, told as one row. Any process can make it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhr.data import TaskCollection
from mhr.errors import MhrError
from mhr.evaluation import EvaluationResult, LoadedModel, evaluate, load_model
from mhr.few_shot.adapting import few_shot_settings
from mhr.few_shot.jobs import Job, frozen_heap, run_job
from mhr.few_shot.selecting import read_dev, share_out
from mhr.few_shot.starts import Start, check_mode, load_start
from mhr.files import folder_name
from mhr.runs.run import RUN_FILE, RunFolder
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import read_tasks
from mhr.training.watch import ProgressBar


@dataclass(frozen=True, slots=True)
class Unit:
    """run: path of the pretraining run, `name` its short name."""

    run: str
    name: str
    mode: str
    task: str
    seed: int

    @property
    def key(self) -> tuple[Any, ...]:
        return self.name, self.mode, self.task, self.seed

    @staticmethod
    def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
        """The key of the unit that a row is about."""
        return row["run"], row["mode"], row["task"], row["seed"]

    def row(self, **columns: Any) -> dict[str, Any]:
        return {"run": self.name, "mode": self.mode, "task": self.task, "seed": self.seed, **columns}

    def failed(self, error: str) -> dict[str, Any]:
        return self.row(status="failed", error=error)


@dataclass(frozen=True, slots=True)
class Study:
    """What all units of a sweep share; see `mhr.few_shot.sweeping.sweep`. identity: what decides their results, for resuming."""

    output: str
    tasks_path: str | None
    template: str | None
    limit: int | None
    few: dict[str, Any]
    identity: dict[str, Any]


class Worker:
    """Makes units one after the other. What units of the same run and mode share is loaded once."""

    def __init__(self, study: Study):
        self.study = study
        self._ready: tuple[tuple[str, str], _Ready] | None = None

    def work(self, unit: Unit) -> dict[str, Any]:
        """The row of a unit; of one that cannot be made, why."""
        try:
            return self._work(unit)
        except MhrError as error:
            return unit.failed(str(error))

    def _work(self, unit: Unit) -> dict[str, Any]:
        ready = self._prepare(unit)
        config, source, start = ready.config, ready.source, ready.start
        task = ready.tasks[unit.task]
        kind = source.info["model_kind"]
        folder = Path(self.study.output) / "units" / unit.name / unit.mode / folder_name(unit.task) / str(unit.seed)
        job = Job(task, unit.seed, share_out(task, config.adapt, unit.seed, start.mode, ready.dev), folder)
        trained_before = (folder / RUN_FILE).is_file() and RunFolder.open(folder).status == "done"
        began = time.perf_counter()
        with ProgressBar(1, "", shown=False) as bar, frozen_heap():
            run = run_job(job, start, config, source, bar)
        seconds = time.perf_counter() - began
        loaded = load_model(folder) if trained_before else LoadedModel(start.model, start.tokenizer, kind, str(folder))
        result = evaluate(
            loaded,
            TaskCollection([task], ready.tasks.source),
            limit=self.study.limit,
            max_input_length=config.data.max_input_length,
            max_target_length=config.data.max_target_length,
            length_norm=run.info["config"]["train"]["length_norm"],  # a grid may have chosen it
            precision=config.train.precision,
            progress=False,
        )
        return unit.row(status="done", **_columns(run, result), seconds=None if trained_before else seconds)

    def _prepare(self, unit: Unit) -> _Ready:
        key = unit.run, unit.mode
        if self._ready is None or self._ready[0] != key:
            self._ready = None  # the model before goes before the next one comes
            source = RunFolder.open(unit.run)
            config = few_shot_settings(source.config(), self.study.tasks_path, self.study.template, self.study.few)
            mode = check_mode(unit.mode, config, unit.run)
            tasks = read_tasks(config.tasks, config.data)
            self._ready = key, _Ready(source, config, load_start(source, config, mode), tasks, read_dev(config))
        return self._ready[1]


@dataclass(frozen=True, slots=True)
class _Ready:
    source: RunFolder
    config: RunConfig
    start: Start
    tasks: TaskCollection
    dev: TaskCollection | None


def _columns(run: RunFolder, result: EvaluationResult) -> dict[str, Any]:
    """What a row tells of a run and its evaluation."""
    (measures,) = result.tasks.values()
    config, selection = run.info["config"], run.info["selection"]
    chosen = selection["trials"][selection["chosen"]] if selection else None
    return {
        "method": run.info["method"],
        "collection": config["tasks"],
        "category": measures["category"],
        "protocol": run.info["protocol"],
        "chosen_on": selection["on"] if selection else None,
        "shots": len(run.info["shots"]),
        "lr": config["train"]["lr"],
        "router_lr": config["train"]["router_lr"],
        "batch_size": config["train"]["batch_size"],
        "steps": run.info["steps"],
        "dev_score": chosen["score"] if chosen else None,
        "trials": [{key: trial[key] for key in ("settings", "step", "score", "loss")} for trial in selection["trials"]]
        if selection
        else [],
        "split": result.split,
        "n": measures["n"],
        "score": measures["score"],
        **{name: measures.get(name) for name in ("accuracy", "exact_match", "rouge_l", "majority")},
        "trained": run.info["parameters"]["trained"],
        "folder": str(run.path),
    }
