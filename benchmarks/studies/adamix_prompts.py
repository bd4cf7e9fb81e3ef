"""AdaMix from 30 examples and a prompt, on a real decoder: `python -m mhr_benchmarks.studies.adamix_prompts --tasks PATH --output DIR`.

SmolLM2-135M-Instruct reads each input in a prompt and answers with the word of a label: words are ranked by their likelihood behind the
prompt, and training lowers the loss of the right one. Zero-shot; and each task alone, after a fixed number of steps on 30 examples that the seed draws, of
which the last step counts: one bottleneck, AdaMix (4 modules, the up projection shared, consistency 1), and a LoRA of as many
parameters as one bottleneck. No example is kept for validation.

The tasks are those of the AdaMix study that are trained longest there. The learning rate of each method is the one of three with the best
accuracy on a further task, which has no part in the results. The runs come seed by seed; after each seed the page in --results (JSON and
Markdown) is written again, and the same command takes an interrupted study up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhr.data import TaskCollection, load_tasks
from mhr.few_shot.shots import draw_shots
from mhr.loading import Loading
from mhr.runs import RunFolder, load_config

from . import adamix_plan
from .adamix_prompts_page import page
from .choices import best
from .command import add_workers, command_of, parser_of
from .jobs import Job, train
from .stages import Stages
from .task_files import write_collection

MODEL = "builtin:smollm2-135m"
DTYPE = "bfloat16"
"""Of the base, adapters are float32: a training step is a little faster than in float32."""
PROMPT = "{input}\nAnswer:"


@dataclass(frozen=True)
class Method:
    """What is trained. settings: of the run; passes: of a step over its batch."""

    settings: dict[str, Any]
    passes: int = 1


METHODS = {
    "one bottleneck": Method(adamix_plan.BOTTLENECK),
    "AdaMix, up shared": Method(adamix_plan.SHARED, passes=2),
    # 576,000 parameters; one bottleneck of width 16 in each of 30 blocks has 570,720.
    "LoRA": Method({"method": "lora", "rank": 5, "alpha": 5.0}),
}


@dataclass(frozen=True)
class Plan:
    """Sizes of the study. limit: test examples of each task."""

    trial_task: str = adamix_plan.Plan.trial_tasks[0]
    tasks: tuple[str, ...] = adamix_plan.Plan.long_tasks
    seeds: tuple[int, ...] = adamix_plan.Plan.seeds
    trial_seed: int = adamix_plan.Plan.trial_seed
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    shots: int = 30
    steps: int = 100
    batch: int = 4
    max_length: int = 96
    limit: int = 100


QUICK: dict[str, Any] = {
    "tasks": Plan.tasks[:2],
    "seeds": Plan.seeds[:1],
    "rates": Plan.rates[:2],
    "shots": 4,
    "steps": 2,
    "limit": 4,
}


class Study:
    """The stages of the study; `Stages` keeps what is done."""

    def __init__(self, model: str, plan: Plan, tasks: str, output: Path, workers: int):
        self.model, self.plan, self.output, self.workers = model, plan, output, workers
        self.stages = Stages(output, {"backbone": model, "plan": dataclasses.asdict(plan)})
        self.tasks = load_tasks(tasks, definitions=False).select([plan.trial_task, *plan.tasks])

    def run(self) -> Iterator[int]:
        """Yields each seed when all is done with it."""
        plan = self.plan
        rates = self.rates()
        for task in plan.tasks:
            self.score("zero-shot", self.model, self.shown(task, plan.seeds[0]), None)
        for seed in plan.seeds:
            chosen = [(name, task) for task in plan.tasks for name in METHODS]
            jobs = [self.job(name, rates[name], task, seed, "runs") for name, task in chosen]
            for (name, task), run in zip(chosen, self.train(jobs), strict=True):
                self.stages.keep(name, run)
                self.score(name, run.path, self.shown(task, seed), seed)
            yield seed

    def rates(self) -> dict[str, float]:
        """Method -> the rate with the best accuracy on the trial task, of equal ones the least."""
        plan, seed = self.plan, self.plan.trial_seed
        tried = [(name, rate) for name in METHODS for rate in plan.rates]
        jobs = [self.job(name, rate, plan.trial_task, seed, "trials") for name, rate in tried]
        found: dict[str, dict[float, float]] = {name: {} for name in METHODS}
        for (name, rate), run in zip(tried, self.train(jobs), strict=True):
            row = f"trial {name} at {rate:g}"
            self.score(row, run.path, self.shown(plan.trial_task, seed), seed)
            found[name][rate] = self.stages.state["scores"][row][plan.trial_task][str(seed)]["accuracy"]
        chosen = {name: best(own) for name, own in found.items()}
        self.stages.state["methods"] = {
            name: {
                "trials": {f"{rate:g}": score for rate, score in found[name].items()},
                "rate": f"{chosen[name]:g}",
                "passes": method.passes,
            }
            for name, method in METHODS.items()
        }
        self.stages.save()
        return chosen

    def job(self, name: str, rate: float, task: str, seed: int, folder: str) -> Job[str]:
        plan = self.plan
        config = load_config(
            model=self.model,
            dtype=DTYPE,
            tasks=self.file(task, seed),
            prompt=PROMPT,
            steps=plan.steps,
            batch_size=plan.batch,
            lr=rate,
            seed=seed,
            max_input_length=plan.max_length,
            save_every=10**6,
            **METHODS[name].settings,
        )
        where = name.replace(", ", "-").replace(" ", "-")
        return Job(name, config, str(self.output / folder / where / f"{rate:g}" / task / str(seed)))

    def train(self, jobs: list[Job[str]]) -> Iterator[RunFolder]:
        """The runs, in the order of their jobs."""
        for job, run, taken in train(jobs, self.workers):
            self.stages.state["seconds"].setdefault(f"{job.key} {Path(job.folder).relative_to(self.output)}", taken)
            yield run

    def file(self, task: str, seed: int) -> str:
        """A task with the shots that a seed draws and its first test examples."""
        plan, known = self.plan, self.tasks[task]
        drawn = dataclasses.replace(known, train=draw_shots(known, plan.shots, seed), held_out=False)
        file = self.output / "tasks" / f"{task}-{seed}.jsonl"
        return write_collection(file, [drawn], {task: (plan.shots, plan.limit)})

    def shown(self, task: str, seed: int) -> TaskCollection:
        """The same in the prompt."""
        return load_tasks(self.file(task, seed), prompt=PROMPT)

    def score(self, row: str, path: str | Path, tasks: TaskCollection, seed: int | None) -> None:
        self.stages.score(row, path, tasks, seed, loading=Loading(dtype=DTYPE), max_input_length=self.plan.max_length)


def main() -> None:
    parser = parser_of(__doc__)
    add_workers(parser)
    parser.add_argument("--model", default=MODEL, help="the decoder; default: %(default)s")
    args = parser.parse_args()
    plan = dataclasses.replace(Plan(), **QUICK) if args.quick else Plan()
    study = Study(args.model, plan, args.tasks, args.output, args.workers)
    name = "adamix_prompts_quick" if args.quick else "adamix_prompts"
    for _ in study.run():
        command = command_of("adamix_prompts", args)
        print(study.stages.publish(args.results, name, command, page, prompt=PROMPT, dtype=DTYPE), flush=True)


if __name__ == "__main__":
    main()
