"""What the study trains: the variants that are compared, and how large all of it is.

All variants of a setting have the same backbone, tasks, steps, batches, shots and alpha, and each has the same number of trials of its
learning rates. Scores are of runs with the rates of the highest score in the trials, losses of runs with the rate of pretraining
of the lowest loss there, which is another one for some. Routing has no noise. A run that is adapted keeps the best of the steps that
are looked at, judged on a quarter of its shots. What its bank holds is what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .choices import best
from .task_files import Tasks

HEADS, SKILLS, RANK = 8, 8, 2
TRIAL, SCREEN, TEST, LOSS = "trials", "screen", "units", "losses"
SCREENING = ("lora", "mhr")


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


AS_BANK = {"rank": RANK, "alpha": float(RANK)}
VARIANTS = (
    Variant("lora", "lora", AS_BANK, ("lora",), "bank"),
    Variant("wide", "lora", {"rank": RANK * SKILLS, "alpha": float(RANK)}, ("lora",)),
    Variant("poly", "poly", {**AS_BANK, "n_skills": SKILLS}, ("mhr",)),
    Variant("mhr", "mhr", {**AS_BANK, "n_skills": SKILLS, "n_heads": HEADS}, ("mhr", "z", "mu"), "mu"),
    Variant("uniform", "uniform", {**AS_BANK, "n_skills": SKILLS}, ("mhr",), seeds=8),
    Variant("random", "random", {**AS_BANK, "n_skills": SKILLS, "n_heads": HEADS}, ("mhr",), seeds=8),
)
ABOUT = {
    "lora": "one shared LoRA of rank 2: parameter-matched to one merged task of a bank",
    "wide": "one shared LoRA of rank 16 with the same alpha: parameter-matched to a bank of 8 skills",
    "poly": "8 skills of rank 2, one head",
    "mhr": "8 skills of rank 2, 8 heads",
    "uniform": "8 skills of rank 2 with fixed weights 1/8: as many parameters, no routing",
    "random": "8 skills of rank 2, 8 heads, under routing that is drawn at random and never trained",
}
"""What a variant's bank holds."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the study in a setting.

    more_steps   of the phase before the zero-shot comparison; 0 for none
    look_every   steps of an adaptation between two looks for the best one
    rates        of pretraining that are tried; adapt_rates: of adaptation; router_rates: of adaptation in mode z, where the routing alone is trained
    seen, test   examples that a training task, and a task that is adapted to, is judged on
    """

    steps: int = 600
    save_every: int = 100
    batch: int = 32
    more_steps: int = 100
    router_lr: float = 0.1
    shots: int = 32
    adapt_steps: int = 200
    look_every: int = 40
    adapt_batch: int = 16
    adapt_router_lr: float = 0.5
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    adapt_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    router_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    seen: int = 20
    test: int = 400
    trial_seed: int = 100
    seeds: tuple[int, ...] = tuple(range(101, 117))


@dataclass(frozen=True)
class Setting:
    """A backbone with its tasks.

    base     settings of every pretraining run: the model, and how examples are read
    trials   the tasks of the trials, of which none that is judged is judged in a fold
    folds    the tasks of the test seeds; every seed trains each variant once for every fold
    zero_shot  whether a task can be judged without adapting to it
    screens  of each fold, the same tasks judged on examples that nothing else is judged on: those without headroom are left out; empty
             where no task is
    """

    name: str
    title: str
    about: str
    plan: Plan
    base: dict[str, Any]
    trials: Tasks
    folds: tuple[Tasks, ...]
    screens: tuple[Tasks, ...] = ()
    variants: tuple[Variant, ...] = VARIANTS
    zero_shot: bool = True

    @property
    def reading(self) -> dict[str, Any]:
        """`base` without the model, whose path is one of this machine."""
        return {name: value for name, value in self.base.items() if name != "model"}


def rates_of(plan: Plan, mode: str) -> tuple[str, tuple[float, ...]]:
    """The rate of an adaptation that is tried, and its values."""
    return ("router_lr", plan.router_rates) if mode == "z" else ("lr", plan.adapt_rates)


@dataclass(frozen=True, eq=False)
class Unit:
    """One pretraining run with everything that is made from it: what a worker does at a time.

    kind    TRIAL: judged on the tasks of the trials; SCREEN: on examples that nothing else is judged on; TEST; LOSS: by the loss on its
            training tasks alone
    rates   of the adaptations by mode: those that are tried, or the one that was chosen
    judged  the tasks that are adapted to
    """

    setting: Setting
    variant: Variant
    seed: int
    lr: float
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    kind: str = TEST
    fold: int = 0
    judged: tuple[str, ...] = ()

    @property
    def tasks(self) -> Tasks:
        if self.kind == TRIAL:
            return self.setting.trials
        return (self.setting.screens if self.kind == SCREEN else self.setting.folds)[self.fold]

    @property
    def name(self) -> str:
        if self.kind == TRIAL:
            return f"{self.variant.name}-{self.lr:g}"
        name = f"{self.variant.name}-{self.seed}" + (f"-{self.fold}" if len(self.setting.folds) > 1 else "")
        return f"{name}-{self.lr:g}" if self.kind == LOSS else name

    @property
    def folder(self) -> str:
        return f"{self.setting.name}/{self.kind}/{self.name}"


def trials(setting: Setting) -> list[Unit]:
    """Every rate of pretraining, with every rate of the first mode of adaptation."""
    plan = setting.plan
    return [
        _trial(setting, variant, lr, {variant.modes[0]: rates_of(plan, variant.modes[0])[1]})
        for variant in setting.variants
        for lr in plan.rates
    ]


def further_trials(setting: Setting, chosen: dict[str, float]) -> list[Unit]:
    """Every rate of the other modes, from the run with the chosen rate of pretraining, whose trial it goes on with."""
    return [
        _trial(setting, variant, chosen[variant.name], {m: rates_of(setting.plan, m)[1] for m in variant.modes})
        for variant in setting.variants
        if len(variant.modes) > 1
    ]


def _trial(setting: Setting, variant: Variant, lr: float, rates: dict[str, tuple[float, ...]]) -> Unit:
    return Unit(setting, variant, setting.plan.trial_seed, lr, rates, TRIAL, judged=setting.trials.judged)


def screening(setting: Setting, methods: dict[str, Any]) -> list[Unit]:
    """Every fold with both sides of the first question, a shared LoRA and MHR, so that neither is favoured."""
    return [
        Unit(
            setting,
            variant,
            setting.plan.trial_seed,
            methods[variant.name]["lr"],
            {mode: (methods[variant.name]["modes"][mode],) for mode in variant.modes[:1]},
            SCREEN,
            fold,
            tasks.judged,
        )
        for variant in setting.variants
        if variant.name in SCREENING
        for fold, tasks in enumerate(setting.screens)
    ]


def units(setting: Setting, choices: dict[str, Any], seeds: int | None = None) -> list[Unit]:
    """Seed by seed, so that a study that is stopped early can compare all variants on the seeds that it has. A variant whose losses are of
    another rate than its scores has a unit for each."""
    methods, kept = choices["methods"], choices.get("kept")
    found = []
    for i, seed in enumerate(setting.plan.seeds[:seeds]):
        for variant in setting.variants:
            if variant.seeds is not None and i >= variant.seeds:
                continue
            own = methods[variant.name]
            rates = {mode: (own["modes"][mode],) for mode in variant.modes}
            for fold, tasks in enumerate(setting.folds):
                judged = tuple(task for task in tasks.judged if kept is None or task in kept)
                found.append(Unit(setting, variant, seed, own["lr"], rates, fold=fold, judged=judged))
                if rate_of_losses(own) != own["lr"]:
                    found.append(Unit(setting, variant, seed, rate_of_losses(own), kind=LOSS, fold=fold))
    return found


def rate_of_losses(chosen: Mapping[str, Any]) -> float:
    """The rate of pretraining with the lowest loss in the trials of a variant: that of the score where none was finite."""
    losses = {float(lr): -loss for lr, loss in chosen["losses"].items() if loss is not None}
    return best(losses) if losses else chosen["lr"]
