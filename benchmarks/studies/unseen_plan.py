"""What the study of unseen tasks trains, and how what is trained answers a task that it was never trained on.

All that is pretrained has the same backbone, tasks, steps and batches. LoRAs and the skills of banks have rank 2, bottlenecks width 8. Each
has as many trials: of its rate of pretraining, judged by the first row that answers from it, without training on the judged task; then of the rate of
adaptation of each of its rows. Texts are embedded by one encoder. An adaptation takes the shots that its seed draws, and its last
step counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mhr.methods import METHODS

from .task_files import Tasks

TRIAL, TEST = "trials", "units"
HEADS, SKILLS, RANK, WIDTH = 8, 8, 2, 8

EVALUATED, SHOWN, ROUTED, SEARCHED = "evaluated", "shown", "routed", "searched"
"""How a run answers an unseen task: as it is; after it was shown shots, of which no gradient is taken; by token, over its LoRAs; as a sum
of its LoRAs whose weights are searched on shots."""


@dataclass(frozen=True)
class Trained:
    """What is pretrained. settings: of the run; adapting: of its adaptations; embeds: whether it embeds texts of tasks."""

    name: str
    method: str
    settings: dict[str, Any]
    adapting: dict[str, Any] = field(default_factory=dict)
    embeds: bool = False


@dataclass(frozen=True)
class Row:
    """A way to answer unseen tasks.

    trained   name of what it answers from
    answers   EVALUATED, SHOWN, ROUTED or SEARCHED
    mode      of its adaptation to the shots; None where there is none
    settings  of adaptations, where routing begins among them; embeds: whether these embed texts
    generates  whether only a model that generates answers so
    """

    name: str
    trained: str
    answers: str
    mode: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    embeds: bool = False
    generates: bool = False


LORA = {"rank": RANK, "alpha": float(RANK)}
BANK = {**LORA, "n_skills": SKILLS, "n_heads": HEADS}
TRAINED = (
    Trained("lora", "lora", LORA),
    Trained("mhr", "mhr", {**BANK, "router_lr": 0.1}, {"router_lr": 0.5}),
    Trained("context-definition", "context-mhr", {**BANK, "router": {"context": "definition"}}, embeds=True),
    Trained("context-shots", "context-mhr", {**BANK, "router": {"context": "shots"}}, embeds=True),
    Trained("private", "private", LORA),
    Trained("hyperformer++", "hyperformer++", {"rank": WIDTH, "router": {"context": "definition"}}, embeds=True),
    Trained("pha", "pha", {"rank": WIDTH, "router": {}}, embeds=True),
    Trained("generative-adapter", "generative-adapter", {"rank": WIDTH, "alpha": float(WIDTH)}),
)
ROWS = (
    Row("shared LoRA", "lora", EVALUATED, "lora"),
    Row("MHR, uniform weights", "mhr", EVALUATED, "mhr"),
    Row("MHR, nearest task", "mhr", SHOWN, "mhr", {"start": "nearest"}, embeds=True),
    Row("context-mhr, definition", "context-definition", EVALUATED, "mhr"),
    Row("context-mhr, shots", "context-shots", SHOWN, "mhr"),
    Row("Arrow", "private", ROUTED, generates=True),
    Row("private LoRAs, average", "private", SHOWN, "mu"),
    Row("LoraHub", "private", SEARCHED, generates=True),
    Row("HyperFormer++, definition", "hyperformer++", EVALUATED, "mhr"),
    Row("PHA", "pha", SHOWN, "mhr"),
    Row("generative adapter", "generative-adapter", SHOWN, "mhr"),
)


@dataclass(frozen=True)
class Plan:
    """Sizes of the study in a setting.

    hub_steps           candidates of a search; top_k: LoRAs that a token chooses
    rates, adapt_rates  that are tried
    test                examples that a task is judged on
    """

    steps: int = 600
    batch: int = 32
    shots: int = 32
    adapt_steps: int = 100
    adapt_batch: int = 16
    hub_steps: int = 40
    top_k: int = 2
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    adapt_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    test: int = 200
    trial_seed: int = 100
    seeds: tuple[int, ...] = (1, 2, 3)


@dataclass(frozen=True)
class Setting:
    """A backbone with its tasks.

    base       settings of every pretraining run
    encoder    what embeds texts, as the setting of that name has it
    trials     the tasks of the trials, trained on by no run; tests: those of the test seeds
    """

    name: str
    title: str
    about: str
    plan: Plan
    base: dict[str, Any]
    encoder: str
    trials: Tasks
    tests: Tasks
    generates: bool = True

    @property
    def trained(self) -> list[Trained]:
        """What is pretrained: of methods that exist here."""
        return [self._embedding(one) for one in TRAINED if one.method in METHODS]

    def _embedding(self, one: Trained) -> Trained:
        if not one.embeds:
            return one
        return replace(one, settings={**one.settings, "router": {**one.settings["router"], "encoder": self.encoder}})

    def rows(self, trained: Trained) -> list[Row]:
        """The rows that answer from what was trained."""
        own = [row for row in ROWS if row.trained == trained.name and (self.generates or not row.generates)]
        return [replace(row, settings={**row.settings, "encoder": self.encoder}) if row.embeds else row for row in own]


@dataclass(frozen=True, eq=False)
class Unit:
    """One pretraining run with everything that is made from it: what a worker does at a time.

    rates   of the adaptations by row: those that are tried, or the one that was chosen; none in the trials of pretraining
    """

    setting: Setting
    trained: Trained
    seed: int
    lr: float
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    kind: str = TEST

    @property
    def tasks(self) -> Tasks:
        return self.setting.trials if self.kind == TRIAL else self.setting.tests

    @property
    def name(self) -> str:
        return f"{self.trained.name}-{self.lr:g}" if self.kind == TRIAL else f"{self.trained.name}-{self.seed}"

    @property
    def folder(self) -> str:
        return f"{self.setting.name}/{self.kind}/{self.name}"

    @property
    def rows(self) -> list[Row]:
        """Those that answer; in the trials of pretraining the first one."""
        rows = self.setting.rows(self.trained)
        return rows if self.kind == TEST else rows[:1]


def trials(setting: Setting) -> list[Unit]:
    """Every rate of pretraining."""
    plan = setting.plan
    return [Unit(setting, one, plan.trial_seed, lr, {}, TRIAL) for one in setting.trained for lr in plan.rates]


def adapting_trials(setting: Setting, chosen: dict[str, float]) -> list[Unit]:
    """Every rate of adaptation of each row, from the run with the chosen rate of pretraining, whose trial it goes on with."""
    plan = setting.plan
    found = []
    for one in setting.trained:
        rates = {row.name: plan.adapt_rates for row in setting.rows(one) if row.mode}
        if rates:
            found.append(Unit(setting, one, plan.trial_seed, chosen[one.name], rates, TRIAL))
    return found


def units(setting: Setting, choices: dict[str, Any], seeds: int | None = None) -> list[Unit]:
    """Seed by seed, so that a study that is stopped early can compare everything on the seeds that it has."""
    own = choices["trained"]
    return [
        Unit(
            setting,
            one,
            seed,
            own[one.name]["lr"],
            {row.name: (own[one.name]["rows"][row.name],) for row in setting.rows(one) if row.mode},
        )
        for seed in setting.plan.seeds[:seeds]
        for one in setting.trained
    ]


def zero_shot(row: str) -> str:
    """The name of a row's results without training."""
    return f"{row}, zero-shot"


def few_shot(row: str) -> str:
    """The name of a row's results after its adaptation."""
    return f"{row}, adapted"
