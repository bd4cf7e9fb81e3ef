"""A real decoder on real tasks, for the record: `python -m mhr_benchmarks.studies.decoder --tasks PATH --output DIR`.

SmolLM2-135M-Instruct on the chat form of Super-NaturalInstructions: definition and input are the user turn, the target is the
assistant's. Shared LoRA, Poly and MHR of equal rank and equal optimizer steps are pretrained on the training tasks whose inputs
fit MAX_LENGTH tokens. Each method's learning rate is the one of RATES with the lowest loss per token on test examples of the
TRAINING tasks after a short run; held-out tasks have no part in it. Then each held-out task is evaluated

    zero-shot    by the base model without and with in-context examples, and by each bank (uniform weights over the skills)
    32-shot      adapted in the modes z, mu and mhr, and with a fresh LoRA that was trained on nothing before

beside always giving the most frequent training answer. What is done is skipped, so an interrupted study is taken up by the same
command. It ends with a JSON file and a Markdown table in --results.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mhr.data import TaskCollection, load_tasks
from mhr.evaluation import load_model
from mhr.evaluation.metrics import exact_match, majority_answer, mean, rouge_l
from mhr.few_shot import adapt
from mhr.loading import Loading
from mhr.methods import idle_rates
from mhr.objectives import make_objective
from mhr.runs import RunConfig, RunFolder, load_config
from mhr.training import pretrain

from . import RESULTS
from .decoder_page import page
from .fitting import fits
from .stages import Stages

MODEL = "builtin:smollm2-135m"
DTYPE = "bfloat16"
"""Of the base in all rows; banks are float32."""
SHOTS = 32
IN_CONTEXT = 4
MAX_LENGTH = 192
RATES = (5e-4, 1e-3, 2e-3)
METHODS = ("lora", "poly", "mhr")
ADAPTED = (
    ("mhr", "z", "mhr-z"),
    ("mhr", "mu", "mhr-mu"),
    ("mhr", "mhr", "mhr"),
    ("poly", "mhr", "poly"),
    ("lora", "lora", "lora"),
    ("lora", "random", "fresh lora"),
)
"""Method of the pretrained run, mode, and the name in the table."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the study."""

    pretrain_steps: int = 400
    trial_steps: int = 30
    trial_rows: int = 2
    """Test examples of each training task that a trial's loss is taken over."""
    adapt_steps: int = 12
    batch: int = 8
    router_lr: float = 0.05
    adapt_router_lr: float = 0.5
    rank: int = 4
    alpha: float = 8.0
    max_target_length: int = 48
    limit: int = 30
    """Evaluation examples a task."""
    seeds: tuple[int, ...] = (13, 42)
    tasks: int | None = 8
    """Held-out tasks that are judged; None takes all that fit."""


QUICK: dict[str, Any] = {
    "pretrain_steps": 3,
    "trial_steps": 1,
    "trial_rows": 1,
    "adapt_steps": 1,
    "batch": 2,
    "limit": 3,
    "seeds": (13,),
    "tasks": 2,
}


class Study:
    """The stages of the study; `Stages` keeps what is done."""

    def __init__(self, model: str, plan: Plan, tasks: str, output: Path):
        self.model, self.plan, self.tasks, self.output = model, plan, tasks, output
        self.stages = Stages(output, {"backbone": model, "plan": dataclasses.asdict(plan)})
        self.collection = load_tasks(tasks)

    def run(self) -> None:
        base = load_model(self.model)
        kept = self.fitting(base.tokenizer)
        held_out = self.collection.select(kept[: self.plan.tasks])
        self.majority(held_out)
        self.score("base", self.model, held_out, None)
        self.score(f"base, {IN_CONTEXT} in context", self.model, held_out, None, shots=IN_CONTEXT)
        runs = {}
        for method in METHODS:
            rate = self.rate(method)
            work = partial(pretrain, self.settings(method, rate, self.plan.pretrain_steps), resume=True)
            runs[method] = self.on_the_clock(method, partial(work, str(self.output / method)))
            self.stages.keep(f"pretrained {method}", runs[method])
            self.score(f"zero-shot {method}", str(runs[method].path), held_out, None)
        for method, mode, name in ADAPTED:
            self.adapted(runs[method], method, mode, name, held_out)

    def on_the_clock(self, method: str, work: Callable[[], RunFolder]) -> RunFolder:
        """Pretrain, and add the CPU time of all threads to the state, that of an interrupted run only from where it went on."""
        start = time.process_time()
        run = self.stages.timed(f"pretrain {method}", work)
        self.stages.state.setdefault("core_seconds", {}).setdefault(method, time.process_time() - start)
        self.stages.save()
        return run

    def settings(self, method: str, lr: float, steps: int) -> RunConfig:
        plan = self.plan
        return load_config(
            model=self.model,
            tasks=self.tasks,
            method=method,
            steps=steps,
            batch_size=plan.batch,
            lr=lr,
            router_lr=plan.router_lr,
            max_input_length=MAX_LENGTH,
            max_target_length=plan.max_target_length,
            chat_template="auto",
            packing=True,
            save_every=50,
            dtype=DTYPE,
            fit=True,
            sampler="uniform",
            rank=plan.rank,
            alpha=plan.alpha,
        )

    def rate(self, method: str) -> float:
        """The learning rate with the lowest held-out loss on the training tasks, kept in the state with what it was chosen from."""
        chosen = self.stages.state.setdefault("rates", {})
        found = chosen.setdefault(method, {})
        for lr in RATES:
            if str(lr) not in found:
                target = self.output / "trials" / f"{method}-{lr}"
                work = partial(pretrain, self.settings(method, lr, self.plan.trial_steps), str(target), resume=True)
                run = self.stages.timed(f"trial {method} {lr}", work)
                found[str(lr)] = self.loss(run)
                self.stages.save()
        return min(RATES, key=lambda lr: found[str(lr)])

    def loss(self, run: RunFolder) -> float:
        """Mean loss per target token on test examples of the run's training tasks, by the run's own objective and prompts."""
        loaded = load_model(run.path)
        objective = make_objective(loaded.kind, run.config().train)
        collate = loaded.collator(MAX_LENGTH, self.plan.max_target_length)
        total = count = 0.0
        for name in run.info["tasks"]:
            batch = collate(self.collection[name].test[: self.plan.trial_rows])
            with loaded.judging():
                losses = objective(loaded.model, batch)
            total, count = total + float(losses.sums.sum()), count + float(losses.counts.sum())
        return total / count

    def adapted(self, run: RunFolder, method: str, mode: str, name: str, held_out: TaskCollection) -> None:
        given = {"lr": run.config().train.lr, "router_lr": self.plan.adapt_router_lr}
        runs = self.stages.timed(
            f"adapt {name}",
            lambda: adapt(
                str(run.path),
                list(held_out),
                mode=mode,
                output=str(self.output / "adapted" / name.replace(" ", "-")),
                shots=SHOTS,
                seeds=self.plan.seeds,
                steps=self.plan.adapt_steps,
                batch_size=self.plan.batch,
                resume=True,
                **{rate: value for rate, value in given.items() if rate not in idle_rates(mode, method)},
            ),
        )
        self.stages.keep(f"adapted {name}", runs[0])
        for one in runs:
            task = one.info["tasks"][0]
            self.score(f"{SHOTS}-shot {name}", str(one.path), held_out.select([task]), one.info["seed"])

    def score(self, row: str, path: str, tasks: TaskCollection, seed: int | None, **settings: Any) -> None:
        self.stages.score(
            row,
            path,
            tasks,
            seed,
            limit=self.plan.limit,
            max_input_length=MAX_LENGTH,
            max_target_length=self.plan.max_target_length,
            metrics=("accuracy", "rouge_l"),
            loading=Loading(dtype=DTYPE),
            **settings,
        )

    def majority(self, held_out: TaskCollection) -> None:
        """What always giving the most frequent training answer of a task scores, as a row of its own."""
        row = self.stages.state["scores"].setdefault("majority", {})
        for task in held_out.values():
            answer, examples = majority_answer(task.train), task.test[: self.plan.limit]
            assert answer is not None
            measures = {"rouge_l": mean([rouge_l(answer, example.targets) for example in examples])}
            if all(example.choices for example in examples):
                measures["accuracy"] = mean([exact_match(answer, example.targets) for example in examples])
            row[task.name] = {"None": {"category": task.category, **measures}}

    def fitting(self, tokenizer: Any) -> list[str]:
        """The held-out tasks of which nine of ten inputs fit."""
        held_out = self.collection.held_out().values()
        return [task.name for task in held_out if fits(task, tokenizer, MAX_LENGTH)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", required=True, help="a folder in the layout of Super-NaturalInstructions")
    parser.add_argument("--output", required=True, type=Path, help="runs and scores so far; the same folder resumes")
    parser.add_argument("--model", default=MODEL, help="the decoder, which needs a chat template; default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the tables go")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few steps, two tasks: to see that everything runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan = dataclasses.replace(Plan(), **QUICK) if args.quick else Plan()
    study = Study(args.model, plan, args.tasks, args.output)
    study.run()
    quick = " --quick" if args.quick else ""
    command = f"python -m mhr_benchmarks.studies.decoder --tasks {Path(args.tasks).name} --output DIR{quick}"
    name = f"decoder{'_quick' if args.quick else ''}"
    print(study.stages.publish(args.results, name, command, page, shots=SHOTS, max_length=MAX_LENGTH))


if __name__ == "__main__":
    main()
