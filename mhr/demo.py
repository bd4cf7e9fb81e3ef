"""The main job in one call: pretrain three ways on the built-in tasks, adapt to tasks never seen, evaluate, compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.data import load_tasks
from mhr.evaluation import evaluate, load_model
from mhr.files import make_folder, prepare_output, write_json_atomically
from mhr.training import adapt, load_config, pretrain
from mhr.training.run import clear
from mhr.training.settings import check_whole

TASKS = ("rev-first", "rotl-second", "first-upper", "min-box", "tail-place")
"""Held-out tasks of the built-in suite, of each kind of composition."""

COLUMNS = {
    "no adaptation": ("mhr", None),
    "shared LoRA": ("lora", "lora"),
    "Poly": ("poly", "poly"),
    "MHR": ("mhr", "mhr"),
    "MHR-z": ("mhr", "z"),
    "MHR-mu": ("mhr", "mu"),
}
"""Column of the table -> the method that was pretrained, and the mode of its adaptation. Without one, the pretrained bank
answers with all skills weighed alike."""

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
        return list(COLUMNS)

    @property
    def mean(self) -> dict[str, float]:
        """Mean over the tasks, by column."""
        return {c: sum(row[c] for row in self.scores.values()) / len(self.scores) for c in COLUMNS}

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return dataclasses.asdict(self) | {"path": str(self.path), "mean": self.mean}


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
    say         is told what begins, one line each

    Raises MhrError as `pretrain` and `adapt` do.
    """
    folder = Path(output)
    if max_tasks is not None:
        check_whole("max_tasks", max_tasks, at_least=1)
    settings = load_config(preset="demo", overrides=overrides)
    names = TASKS[:max_tasks]
    collection = load_tasks(settings.tasks).select(list(names))
    if not (resume and (folder / DEMO_FILE).is_file()):
        prepare_output(folder, overwrite)
        clear(make_folder(folder))
        write_json_atomically(folder / DEMO_FILE, {"status": "running"})
    sources = {}
    for method in dict.fromkeys(method for method, _ in COLUMNS.values()):
        say(f"Pretraining {method} on the training tasks of the suite")
        config = load_config(preset="demo", method=method, overrides=overrides)
        sources[method] = pretrain(config, str(folder / "pretrain" / method), resume=True, progress=progress).path
    result = DemoResult(folder, settings.adapt.shots, {name: {} for name in names})
    for column, (method, mode) in COLUMNS.items():
        if mode is None:
            result.trained[column] = 0
            checkpoints = dict.fromkeys(names, [sources[method]])
        else:
            say(f"Adapting to {len(names)} new tasks from {result.shots} examples of each: {column}")
            target = str(folder / "adapt" / f"{method}-{mode}")
            runs = adapt(str(sources[method]), names, mode=mode, output=target, resume=True, progress=progress)
            result.trained[column] = runs[0].info["parameters"]["trained"]
            checkpoints = {name: [run.path for run in runs if run.info["tasks"] == [name]] for name in names}
        for name, paths in checkpoints.items():
            alone = collection.select([name])
            each = [evaluate(load_model(p), alone, limit=limit, progress=False).tasks[name] for p in paths]
            result.scores[name][column] = sum(found["score"] for found in each) / len(each)
            result.majority[name] = each[0]["majority"]
    write_json_atomically(folder / DEMO_FILE, {"status": "done", **result.to_dict()})
    return result
