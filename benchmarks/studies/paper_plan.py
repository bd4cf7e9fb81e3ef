"""What the study trains: the variants that are compared, the tasks, and how large all of it is.

All variants have the same backbone, tasks, steps, batches, shots and scaling alpha / rank of what a task is given, and each has the
same number of trials of its learning rates. What its bank holds differs:

    lora      one shared LoRA of rank 2: parameter-matched to one merged task of a bank
    wide      one shared LoRA of rank 16 with the same alpha: parameter-matched to a bank of 8 skills
    poly      8 skills of rank 2, one head
    mhr       8 skills of rank 2, 8 heads
    uniform   8 skills of rank 2 with fixed weights 1/8: as many parameters, no routing
    random    8 skills of rank 2, 8 heads, under routing that is drawn at random and never trained

Of the skills suite's training tasks 12 are validation tasks: they are trained on by no run, and trials are judged on them alone. All its
held-out tasks are test tasks. A run that is adapted keeps the best of the steps that are looked at, judged on a quarter of its shots.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mhr.data import Task
from mhr.data.skills import skills_suite

from .task_files import write_collection

HEADS, SKILLS, RANK = 8, 8, 2
RATES = (1e-3, 3e-3, 1e-2)
ROUTER_RATES = (0.1, 0.3, 1.0)
"""In mode z, where the routing alone is trained."""


@dataclass(frozen=True)
class Variant:
    """modes: how its runs are adapted, the first one also in the trials of pretraining; continued: whether it goes on for some steps
    before it is judged zero-shot, and as what; seeds: the first so many of the plan's."""

    name: str
    method: str
    settings: dict[str, Any]
    modes: tuple[str, ...]
    continued: str | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Plan:
    """Sizes of the study. test, validation: examples that a task of each kind is judged on; seen: of each training task."""

    steps: int = 600
    save_every: int = 100
    batch: int = 32
    more_steps: int = 100
    """Of the phase before the zero-shot comparison."""
    router_lr: float = 0.1
    shots: int = 32
    adapt_steps: int = 200
    look_every: int = 40
    adapt_batch: int = 16
    adapt_router_lr: float = 0.5
    rates: tuple[float, ...] = RATES
    router_rates: tuple[float, ...] = ROUTER_RATES
    test: int = 400
    validation: int = 100
    seen: int = 20
    trial_seed: int = 100
    seeds: tuple[int, ...] = tuple(range(1, 17))
    n_training: int | None = None
    n_validation: int = 12
    n_test: int | None = None
    """Tasks of each kind; None takes all that there are."""


QUICK = Plan(
    steps=4, save_every=2, batch=4, more_steps=2, adapt_steps=2, look_every=1, adapt_batch=4, rates=RATES[:2],
    router_rates=ROUTER_RATES[:1], test=3, validation=3, seen=2, seeds=(1, 2), n_training=6, n_validation=2, n_test=2,
)  # fmt: skip

AS_BANK = {"rank": RANK, "alpha": float(RANK)}
VARIANTS = (
    Variant("lora", "lora", AS_BANK, ("lora",), "bank"),
    Variant("wide", "lora", {"rank": RANK * SKILLS, "alpha": float(RANK)}, ("lora",)),
    Variant("poly", "poly", {**AS_BANK, "n_skills": SKILLS}, ("mhr",)),
    Variant("mhr", "mhr", {**AS_BANK, "n_skills": SKILLS, "n_heads": HEADS}, ("mhr", "z", "mu"), "mu"),
    Variant("uniform", "uniform", {**AS_BANK, "n_skills": SKILLS}, ("mhr",), seeds=8),
    Variant("random", "random", {**AS_BANK, "n_skills": SKILLS, "n_heads": HEADS}, ("mhr",), seeds=8),
)


@dataclass(frozen=True)
class Tasks:
    """The tasks of the study by kind, and the file that runs read them from."""

    file: str
    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def suite(plan: Plan, output: Path) -> Tasks:
    """The skills suite: every few training tasks along its order, category by category, is a validation task."""
    tasks = skills_suite(0, 400, plan.test)
    held_out = [task.name for task in tasks.held_out().values()][: plan.n_test]
    known = list(tasks.training().values())
    validation = _spread(known, plan.n_validation)
    training = [task.name for task in known if task.name not in validation][: plan.n_training]
    sizes = dict.fromkeys(training, (400, plan.seen))
    sizes |= dict.fromkeys(validation, (100, plan.validation)) | dict.fromkeys(held_out, (100, plan.test))
    kept = [replace(task, held_out=task.name not in training) for task in tasks.values() if task.name in sizes]
    file = write_collection(output / "tasks.jsonl", kept, sizes)
    return Tasks(file, tuple(training), tuple(validation), tuple(held_out))


def _spread(tasks: list[Task], n: int) -> list[str]:
    """The names of `n` tasks, evenly spaced in the order of their categories."""
    ordered = sorted(tasks, key=lambda task: task.category)
    return [ordered[round((i + 0.5) * len(ordered) / n - 0.5)].name for i in range(n)]


def rates_of(plan: Plan, mode: str) -> tuple[str, tuple[float, ...]]:
    """The rate of an adaptation that is tried, and its values."""
    return ("router_lr", plan.router_rates) if mode == "z" else ("lr", plan.rates)


@dataclass(frozen=True, eq=False)
class Unit:
    """One pretraining run with everything that is made from it: what a worker does at a time.

    rates   of pretraining (None), and of each mode: those that are tried, or the one that was chosen
    trial   whether it is judged on the validation tasks, and nothing else is made of it
    """

    plan: Plan
    tasks: Tasks
    variant: Variant
    seed: int
    lr: float
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    trial: bool = False

    @property
    def name(self) -> str:
        return f"{self.variant.name}-{self.lr:g}" if self.trial else f"{self.variant.name}-{self.seed}"

    @property
    def folder(self) -> str:
        return f"{'trials' if self.trial else 'units'}/{self.name}"


def trials(plan: Plan, tasks: Tasks) -> list[Unit]:
    """Every rate of pretraining, with every rate of the first mode of adaptation."""
    return [
        Unit(
            plan,
            tasks,
            variant,
            plan.trial_seed,
            lr,
            {variant.modes[0]: rates_of(plan, variant.modes[0])[1]},
            trial=True,
        )
        for variant in VARIANTS
        for lr in plan.rates
    ]


def further_trials(plan: Plan, tasks: Tasks, chosen: dict[str, float]) -> list[Unit]:
    """Every rate of the other modes, from the run with the chosen rate of pretraining, whose trial it goes on with."""
    return [
        Unit(
            plan, tasks, variant, plan.trial_seed, chosen[variant.name],
            {mode: rates_of(plan, mode)[1] for mode in variant.modes}, trial=True,
        )
        for variant in VARIANTS
        if len(variant.modes) > 1
    ]  # fmt: skip


def units(plan: Plan, tasks: Tasks, choices: dict[str, Any]) -> list[Unit]:
    """Seed by seed, so that a study that is stopped early can compare all variants on the seeds that it has."""
    return [
        Unit(
            plan, tasks, variant, seed, choices[variant.name]["lr"],
            {mode: (choices[variant.name]["modes"][mode],) for mode in variant.modes},
        )
        for i, seed in enumerate(plan.seeds)
        for variant in VARIANTS
        if variant.seeds is None or i < variant.seeds
    ]  # fmt: skip
