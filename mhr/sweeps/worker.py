"""What a process of a sweep does: one adaptation after the other, each evaluated on its test examples and reported as one row."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from mhr.data import TaskCollection
from mhr.errors import MhrError, out_of_memory
from mhr.evaluation import EvaluationResult, LoadedModel, evaluate, load_model
from mhr.few_shot.adaptation import Adaptation, Preparation, frozen_heap, make
from mhr.few_shot.adapting import few_shot_settings
from mhr.few_shot.selecting import data_of, read_dev
from mhr.few_shot.starts import load_start
from mhr.loading import Loading
from mhr.objectives.lengths import fit_data
from mhr.runs.run import RUN_FILE, RunFolder
from mhr.runs.scoring import METRICS
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import read_tasks
from mhr.sweeps.table import Row
from mhr.training.watch import ProgressBar


@dataclass(frozen=True, slots=True)
class Study:
    """What all adaptations of a sweep share; see `mhr.sweeps.sweep`.

    names      path of a run -> its short name, by which rows tell it
    changed    settings of `few_shot_settings` that are not as the runs say
    identity   what decides their results, for resuming
    """

    names: dict[str, str]
    changed: dict[str, Any]
    limit: int | None
    few: dict[str, Any]
    identity: dict[str, Any]

    def row(self, adaptation: Adaptation, **columns: Any) -> Row:
        """The row of an adaptation; by its first four columns it is found again (`mhr.sweeps.table.key_of`)."""
        name = self.names[adaptation.run]
        return {"run": name, "mode": adaptation.mode, "task": adaptation.task, "seed": adaptation.seed, **columns}

    def failed(self, adaptation: Adaptation, error: str) -> Row:
        return self.row(adaptation, status="failed", error=error)


class Worker:
    """Makes adaptations one after the other. What those of the same run and mode share is loaded once."""

    def __init__(self, study: Study):
        self.study = study
        self._ready: tuple[tuple[str, str], Preparation] | None = None
        self._read: tuple[tuple[Any, ...], TaskCollection, TaskCollection | None] | None = None

    def work(self, adaptation: Adaptation) -> Row:
        """The row of an adaptation; of one that cannot be made, why."""
        try:
            return self._work(adaptation)
        except MhrError as error:
            return self.study.failed(adaptation, str(error))
        except (MemoryError, RuntimeError) as error:
            told = out_of_memory(error)
            if told is None:
                raise
            self._ready = None  # what it holds may be what left no room
            return self.study.failed(adaptation, told)

    def _work(self, adaptation: Adaptation) -> Row:
        prepared = self._prepare(adaptation)
        config, start, folder = prepared.config, prepared.start, adaptation.folder
        trained_before = (folder / RUN_FILE).is_file() and RunFolder.open(folder).status == "done"
        began = time.perf_counter()
        with ProgressBar(1, "", shown=False) as bar, frozen_heap():
            run = make(adaptation, prepared, bar)
        seconds = time.perf_counter() - began
        in_memory = LoadedModel(
            start.model, start.tokenizer, prepared.kind, str(folder), chat=prepared.config.data.chat
        )
        result = evaluate(
            self._reload(adaptation, prepared) if trained_before else in_memory,
            TaskCollection([prepared.tasks[adaptation.task]], prepared.tasks.source),
            limit=self.study.limit,
            max_input_length=config.data.max_input_length,
            max_target_length=config.data.max_target_length,
            length_norm=run.info["config"]["train"]["length_norm"],  # a grid may have chosen it
            precision=config.train.precision,
            progress=False,
        )
        columns = _columns(run, result)
        task = prepared.tasks[adaptation.task]
        columns["data"] = data_of(task, prepared.shots(adaptation), task.test[: self.study.limit])
        return self.study.row(adaptation, status="done", **columns, seconds=None if trained_before else seconds)

    def _reload(self, adaptation: Adaptation, prepared: Preparation) -> LoadedModel:
        """What an adaptation wrote before; a model that was trained whole needs no base."""
        base = None if prepared.start.bank is None else self.study.changed["model"]
        return load_model(adaptation.folder, base, loading=Loading.of(prepared.config))

    def _prepare(self, adaptation: Adaptation) -> Preparation:
        key = adaptation.run, adaptation.mode
        if self._ready is None or self._ready[0] != key:
            self._ready = None  # the model before goes before the next one comes
            study = self.study
            source = RunFolder.open(adaptation.run)
            config = few_shot_settings(source.config(), study.few, **study.changed)
            tasks, validation = self._collections(config)
            start = load_start(source, config, adaptation.mode)
            data, _ = fit_data(start.model, start.tokenizer, source.info["model_kind"], config.data)
            config = dataclasses.replace(config, data=data)
            self._ready = key, Preparation(source, config, start, tasks, validation)
        return self._ready[1]

    def _collections(self, config: RunConfig) -> tuple[TaskCollection, TaskCollection | None]:
        """The tasks, and what validates. They are read again only for a run that reads others, or in another way."""
        key = config.tasks, config.adapt.dev, config.data
        if self._read is None or self._read[0] != key:
            tasks = read_tasks(config.tasks, config.data, quiet=True)  # logged when the sweep was planned
            self._read = key, tasks, read_dev(config)
        return self._read[1:]


def _columns(run: RunFolder, result: EvaluationResult) -> Row:
    """The columns of a row about a run and its evaluation."""
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
        "metric": measures["metric"],
        **{name: measures.get(name) for name in ("accuracy", "exact_match", "rouge_l", "majority")},
        **{name: measures[name] for name in METRICS if name in measures},
        "trained": run.info["parameters"]["trained"],
        "folder": str(run.path),
    }
