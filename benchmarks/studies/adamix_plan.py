"""What the AdaMix study trains: each task alone, with a real pretrained encoder (MiniLM, 22M parameters) and a classification head.

Of a task 200 examples train, 50 are kept for validation, and the others (235 at least) judge; the last step counts. One bottleneck; one
bottleneck for twice the optimizer steps, since consistency takes two passes a step; AdaMix (4 modules) with the up projection shared, with
and without consistency, and with nothing shared (the paper's ablation); a LoRA of as many parameters as one bottleneck; full
fine-tuning. The ablation, the bottleneck of twice the steps and full fine-tuning, a pass of which takes three times as long, have the
first seed alone. On three of the tasks one bottleneck and AdaMix are trained for three times the steps too, with the first seed.
Matrix products are in bfloat16, parameters in float32.

The tasks are those of two labels that an n-gram classifier trained on all of their examples solves neither perfectly nor not at all (a
manifest beside the tasks says so), the twelve with the shortest inputs. Three further ones have no part in the results: the learning
rate of each method is the one of three with the best mean accuracy on 100 examples of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

TRIAL, TEST, LONG = "trials", "units", "long"
TRIAL_TEST = 100
"""Examples that a trial is judged on, drawn from those that judge."""
AVERAGE = "average"


@dataclass(frozen=True)
class Method:
    """What is trained. settings: of the run; rates: that are tried; longer: times the steps; passes: of a step over its batch;
    once: with the first seed alone; long: for three times the steps too."""

    name: str
    settings: dict[str, Any]
    rates: tuple[float, float, float] = (1e-3, 2e-3, 4e-3)
    longer: int = 1
    passes: int = 1
    once: bool = False
    long: bool = False

    @property
    def draws(self) -> bool:
        return self.settings["method"] == "adamix"


BOTTLENECK = {"method": "bottleneck", "rank": 16}
ADAMIX = {"method": "adamix", "rank": 16, "n_skills": 4}
SHARED = {**ADAMIX, "share": "up", "consistency": 1.0}
METHODS = (
    Method("one bottleneck", BOTTLENECK, long=True),
    Method("one bottleneck, twice the steps", BOTTLENECK, longer=2, once=True),
    Method("AdaMix, up shared", SHARED, passes=2, long=True),
    Method("AdaMix, up shared, no consistency", {**SHARED, "consistency": 0.0}),
    Method("AdaMix, nothing shared", {**SHARED, "share": "none"}, passes=2, once=True, long=True),
    # 73,728 parameters; one bottleneck of width 16 in each of six blocks has 76,128.
    Method("LoRA", {"method": "lora", "rank": 4, "alpha": 4.0}),
    Method("full fine-tuning", {"method": "full"}, (5e-5, 1e-4, 2e-4), once=True),
)


@dataclass(frozen=True)
class Plan:
    """Sizes of the study. long_tasks: those of `tasks` that are trained for `long_steps` too; limit: test examples of each task, None takes all."""

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
    seeds: tuple[int, ...] = (13, 42, 58)
    trial_seed: int = 7
    trial_steps: int = 300
    n_train: int = 200
    n_validation: int = 50
    steps: int = 1000
    long_steps: int = 3000
    batch: int = 8
    precision: str = "bf16"
    max_length: int = 64
    limit: int | None = None


QUICK = Plan(
    trial_tasks=Plan.trial_tasks[:1], tasks=Plan.tasks[2:4], long_tasks=Plan.long_tasks[:1], seeds=(13,), n_train=32,
    trial_steps=3, steps=4, long_steps=6, limit=8,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Unit:
    """One run with its scores: what a worker does at a time. base: the encoder; file: of the task; rates: none to be tried."""

    plan: Plan
    base: str
    file: str
    method: Method
    lr: float
    task: str
    seed: int
    kind: str = TEST
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        plan = self.plan
        return self.method.longer * {TRIAL: plan.trial_steps, TEST: plan.steps, LONG: plan.long_steps}[self.kind]

    @property
    def folder(self) -> str:
        name = self.method.name.replace(", ", "-").replace(" ", "-")
        return f"{self.kind}/{name}/" + (f"{self.lr:g}/" if self.kind == TRIAL else "") + f"{self.task}/{self.seed}"


@dataclass(frozen=True)
class Setting:
    """What the units are of. base: the encoder; files: task -> its file."""

    plan: Plan
    base: str
    files: dict[str, str]

    def trials(self) -> list[Unit]:
        """Every rate of every method."""
        plan = self.plan
        return [
            Unit(plan, self.base, self.files[task], method, lr, task, plan.trial_seed, TRIAL)
            for method in METHODS
            for lr in method.rates
            for task in plan.trial_tasks
        ]

    def units(self, rates: dict[str, float], seeds: int | None = None) -> list[Unit]:
        """Seed by seed, so that a study that is stopped early can compare methods on the seeds that it has; then the longer runs.
        rates: method -> that of its runs."""
        plan = self.plan
        found: list[Unit] = []
        for i, seed in enumerate(plan.seeds[:seeds]):
            methods = [method for method in METHODS if i == 0 or not method.once]
            found += self._units(methods, rates, plan.tasks, seed, TEST)
        return found + self._units([m for m in METHODS if m.long], rates, plan.long_tasks, plan.seeds[0], LONG)

    def _units(
        self, methods: Iterable[Method], rates: dict[str, float], tasks: Iterable[str], seed: int, kind: str
    ) -> list[Unit]:
        methods = list(methods)
        return [
            Unit(self.plan, self.base, self.files[task], method, rates[method.name], task, seed, kind)
            for task in tasks
            for method in methods
        ]
