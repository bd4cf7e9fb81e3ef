"""The main job in one call: pretrain three ways on the built-in tasks, adapt to tasks never seen, evaluate, compare, merge.

demo.json          the table and the settings it was made with
pretrain/METHOD    the runs
adapt/METHOD-MODE/TASK/SEED    the adapted runs
peft-lora/         the MHR run's average, as a folder that PEFT loads by itself
plots/             how the MHR run routes its tasks
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.analysis.inspection import inspect_run
from mhr.checks import check_whole
from mhr.data import TaskCollection, load_tasks
from mhr.errors import ConfigError, TrainingError
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapt
from mhr.few_shot.adapting import check_said
from mhr.files import make_folder, prepare_output, read_json, write_json_atomically
from mhr.locks import one_writer
from mhr.merging import merge
from mhr.report.plots import save_plots
from mhr.runs import RunConfig, load_config
from mhr.runs.config import to_dict
from mhr.runs.run import clear
from mhr.runs.settings import paths_read
from mhr.training import pretrain

TASKS = ("rev-first", "rotl-second", "first-upper", "min-box", "tail-place")
"""Held-out tasks of the built-in suite, of each kind of composition."""

METHOD_AND_MODE = {
    "no adaptation": ("mhr", None),
    "shared LoRA": ("lora", "lora"),
    "Poly": ("poly", "mhr"),
    "MHR": ("mhr", "mhr"),
    "MHR-z": ("mhr", "z"),
    "MHR-mu": ("mhr", "mu"),
}
"""Column of the table -> the method that was pretrained, and the mode of its adaptation. Without one, the pretrained bank
answers with uniform weights over the skills."""

DEMO_FILE = "demo.json"


@dataclass
class DemoResult:
    """What the demo found. Scores from 0 to 1: accuracy by ranking where a task has choices, otherwise exact match.

    path        where everything was written
    shots       examples of a task that each adaptation learned from
    scores      task -> column -> score on test examples
    majority    task -> what always giving the most frequent training answer would score
    trained     column -> parameters that its adaptation trains
    """

    path: Path
    shots: int
    scores: dict[str, dict[str, float]]
    majority: dict[str, float] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(METHOD_AND_MODE)

    @property
    def mean(self) -> dict[str, float]:
        """Mean over the tasks, by column; of the columns that are filled already."""
        return {c: sum(row[c] for row in self.scores.values()) / len(self.scores) for c in self.trained}

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return dataclasses.asdict(self) | {"path": str(self.path), "mean": self.mean}


@one_writer
def run_demo(
    output: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    overrides: Sequence[str] = (),
    max_tasks: int | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Run the demo preset into `output`: pretrain/METHOD, adapt/METHOD-MODE/TASK/SEED, and the table in demo.json.

    resume      go on where an earlier demo in `output` ended
    overrides   settings over the preset's ("train.steps=50")
    max_tasks   adapt to the first so many of TASKS
    limit       test examples per task; None takes all 100
    say         gets one line as each part begins

    Raises MhrError as `pretrain` and `adapt` do, ConfigError for overrides that one of the methods does not take before anything is
    written, TrainingError where `output` was made with other settings.
    """
    folder = Path(output)
    if max_tasks is not None:
        check_whole("max_tasks", max_tasks, at_least=1)
    settings = load_config(preset="demo", overrides=overrides)
    methods = dict.fromkeys(method for method, _ in METHOD_AND_MODE.values())
    configs = {method: _settings(method, overrides) for method in methods}
    check_said(overrides, [(mode, configs[method]) for method, mode in METHOD_AND_MODE.values() if mode is not None])
    names = TASKS[:max_tasks]
    made_with = {"config": to_dict(settings), "tasks": list(names), "limit": limit}
    result = DemoResult(folder, settings.adapt.shots, {name: {} for name in names})
    if resume and (folder / DEMO_FILE).is_file():
        found = read_json(folder / DEMO_FILE, TrainingError)
        if found.get("made_with") != made_with:
            raise TrainingError(f"{folder} was made with other settings: choose another --output, or pass --overwrite")
        result = dataclasses.replace(result, **{key: found[key] for key in ("scores", "majority", "trained")})
        if found["status"] == "done":
            return result
    else:
        prepare_output(folder, overwrite, paths_read(settings))
        clear(make_folder(folder))
        _write(result, made_with, "running")
    sources = {}
    for method, config in configs.items():
        say(f"Pretraining {method} on the training tasks of the suite")
        sources[method] = pretrain(config, str(folder / "pretrain" / method), resume=True, progress=progress).path
    collection = load_tasks(settings.tasks).select(list(names))
    for column, (method, mode) in METHOD_AND_MODE.items():
        if column in result.trained:
            continue
        trained = 0
        checkpoints = dict.fromkeys(names, [sources[method]])
        if mode is not None:
            say(f"Adapting to {len(names)} new tasks from {result.shots} examples of each: {column}")
            target = str(folder / "adapt" / f"{method}-{mode}")
            runs = adapt(str(sources[method]), names, mode=mode, output=target, resume=True, progress=progress)
            trained = runs[0].info["parameters"]["trained"]
            checkpoints = {name: [run.path for run in runs if run.info["tasks"] == [name]] for name in names}
        _judge(result, column, collection, checkpoints, limit)
        result.trained[column] = trained
        _write(result, made_with, "running")
    say("Merging the MHR run into one LoRA for PEFT, and plotting its routing")
    merge(sources["mhr"], to="peft-lora", output=folder / "peft-lora", overwrite=True)
    save_plots(inspect_run(sources["mhr"]), folder / "plots")
    _write(result, made_with, "done")
    return result


def _settings(method: str, overrides: Sequence[str]) -> RunConfig:
    """The settings that a method is pretrained with. Raises ConfigError."""
    try:
        return load_config(preset="demo", method=method, overrides=overrides)
    except ConfigError as error:
        raise ConfigError(f"{error} (the demo pretrains with method {method!r} too)") from None


def _judge(
    result: DemoResult,
    column: str,
    collection: TaskCollection,
    checkpoints: dict[str, list[Path]],
    limit: int | None,
) -> None:
    """Fill a column: task -> mean score of its checkpoints, one per seed."""
    for name, paths in checkpoints.items():
        alone = collection.select([name])
        each = [evaluate(load_model(path), alone, limit=limit, progress=False).tasks[name] for path in paths]
        result.scores[name][column] = sum(found["score"] for found in each) / len(each)
        result.majority[name] = each[0]["majority"]


def _write(result: DemoResult, made_with: dict[str, Any], status: str) -> None:
    write_json_atomically(result.path / DEMO_FILE, {"status": status, "made_with": made_with, **result.to_dict()})
