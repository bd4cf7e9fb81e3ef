"""Settings of every training, and of an adaptation; those of a run hold the latter as its defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from mhr.errors import ConfigError, nearest
from mhr.method_settings.contexts import BACKBONE_ENCODER
from mhr.setting import MOST_SEED, Settings, as_in, setting, settings_of

SCHEDULERS = ("linear", "cosine", "constant")
"""Schedules of the learning rate after the warm-up."""
PROTOCOLS = ("held-out", "paper")
SELECTIONS = ("best", "last")
STARTS = ("fresh", "nearest", "average", "random", "predicted")
COMPARING = ("nearest", "predicted")
"""Starts that compare tasks."""
EXPERTS_OF_BANKS = ("tasks", "skills")
"""What of a bank stands for LoRAs of its own."""
SIMILARITIES = ("definition", "shots", "gradients")


@dataclass
class OptimizationConfig(Settings):
    """What decides a training, be it of a run or of an adaptation."""

    steps: int = setting(1000, "Optimizer steps.", at_least=1, flag="--steps")
    batch_size: int = setting(
        16, "Examples per forward pass and process.", at_least=1, at_most=2**16, flag="--batch-size"
    )
    lr: float = setting(1e-3, "Learning rate of the adapters.", above=0, flag="--lr")
    router_lr: float = setting(0.1, "Learning rate of the routing logits.", above=0, flag="--router-lr")
    warmup: float = setting(
        0.06,
        "Warm-up steps of the learning rate; below 1, a fraction of all steps.",
        at_least=0,
    )
    scale_parameter: bool = setting(
        False,
        """Multiply the steps of adafactor by the root mean square of what is trained (at least 0.001). Routing logits begin near 0, so with it
        they hardly move.""",
        only={"optimizer": ("adafactor",)},
    )
    scheduler: str = setting(
        "linear",
        "Learning rate after the warm-up: linear (to 0), cosine (to 0), constant.",
        choices=SCHEDULERS,
        flag="--scheduler",
    )
    length_norm: float = setting(
        1.0,
        """Power of a choice's length that its log-likelihood is divided by. Where generators rank choices: 0 sums over its tokens,
        1 takes their mean.""",
        at_least=0,
    )
    mc_loss: float = setting(
        0.0,
        """Weight of the multiple-choice loss (T-Few). For generators on tasks with choices; encoders are trained so
        anyway.""",
        at_least=0,
    )
    unlikely_loss: float = setting(
        0.0,
        "Weight of the unlikelihood loss on wrong choices (T-Few). For generators on tasks with choices.",
        at_least=0,
    )

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.steps * self.warmup) if self.warmup < 1 else int(self.warmup)

    @property
    def ranks(self) -> bool:
        """Whether generators are trained on the choices of a task, not on its right answers alone."""
        return self.mc_loss > 0 or self.unlikely_loss > 0

    def optimization(self) -> dict[str, Any]:
        """The settings of this class, by name; those that are unset are left out."""
        values = {name: getattr(self, name) for name in settings_of(OptimizationConfig)}
        return {name: value for name, value in values.items() if value is not None}


TUNABLE = tuple(name for name, (hint, _) in settings_of(OptimizationConfig).items() if hint in (int, float))
"""Settings of an adaptation that a grid can search."""


@dataclass
class AdaptConfig(OptimizationConfig):
    """How a run is adapted to a new task; what is not named here is as in the run's training."""

    steps: int = as_in(
        OptimizationConfig, "steps", 1000, at_least=0, doc="Optimizer steps. 0 keeps what an adaptation begins with."
    )
    batch_size: int = as_in(OptimizationConfig, "batch_size", 8, doc="Examples per optimizer step.")
    warmup: float = as_in(OptimizationConfig, "warmup", 0.06, flag=("--warmup",))
    scale_parameter: bool | None = as_in(  # type: ignore[assignment]
        OptimizationConfig,
        "scale_parameter",
        None,
        doc="Whether adafactor multiplies its steps by the root mean square of what is trained. Unset: as in the run's training.",
        only={"train.optimizer": ("adafactor",)},
    )
    scheduler: str | None = as_in(  # type: ignore[assignment]
        OptimizationConfig,
        "scheduler",
        None,
        doc="Learning rate after the warm-up: linear, cosine, constant. Unset: as in the run's training.",
    )
    length_norm: float = as_in(OptimizationConfig, "length_norm", 1.0, flag=("--length-norm",))
    mc_loss: float = as_in(OptimizationConfig, "mc_loss", 0.0, flag=("--mc-loss",))
    unlikely_loss: float = as_in(OptimizationConfig, "unlikely_loss", 0.0, flag=("--unlikely-loss",))
    full_lr: float = setting(1e-4, "Learning rate where all weights train (mode full).", above=0)
    shots: int = setting(32, "Training examples of the task.", at_least=1)
    shots_for: dict[str, int] = setting(
        {},
        """Other numbers of shots for some tasks. By name or pattern: {winogrande: 50, "*hellaswag*": 20}.""",
        at_least=1,
    )
    start: str = setting(
        "fresh",
        """First row of a task's routing: fresh, nearest, average, random or predicted. fresh: next to uniform; nearest: that of the training
        task most similar to it; average: the mean of all training tasks' rows; random: that of a training task drawn by the seed;
        predicted: what a small network says of it that is fitted to the training tasks' rows, from what similarity compares.""",
        choices=STARTS,
        flag="--start",
    )
    similarity: str = setting(
        "definition",
        """What tasks are compared by for --start: definition, shots or gradients. definition: embeddings of definitions; shots: of the
        shots, each an input with its answer; gradients: those of the skills on the shots, with uniform routing.""",
        choices=SIMILARITIES,
        flag="--similarity",
        only={"start": COMPARING},
    )
    encoder: str = setting(
        BACKBONE_ENCODER,
        "What embeds definitions or shots for --start: backbone, or a hub id or folder of a sentence encoder.",
        reads=True,
        only={"start": COMPARING},
    )
    candidates: int = setting(
        20,
        """LoRAs of the run that mode lorahub weighs. They are drawn by the seed, where the run has more.""",
        at_least=2,
        flag="--candidates",
    )
    experts: str | None = setting(
        None,
        """LoRAs that mode lorahub weighs: tasks (the mixture of each of the run's tasks) or skills. Unset: tasks; skills of a bank that does
        the same for all tasks.""",
        choices=EXPERTS_OF_BANKS,
        flag="--experts",
    )
    seeds: list[int] = setting(
        [13, 42, 58],
        "One adaptation per seed, for a mean with its spread. It decides the shots, their order, initial values and dropout.",
        at_least=0,
        at_most=MOST_SEED,
        flag="--seeds",
        metavar="N,N,...",
    )
    grid: dict[str, list[float]] = setting(
        {},
        """Values of hyperparameters to search, all combinations of them. In a file {lr: [1e-3, 1e-4], router_lr: [0.5, 0.1]}. One
        that a mode does not have (lr in mode z, router_lr in mode mu) is left out there; in mode full, lr is full_lr.""",
    )
    protocol: str = setting(
        "held-out",
        """Validation examples for a grid or the best step: held-out or paper. held-out: a quarter of the shots, or a dev set, the
        test examples are not used; paper: the test examples that are reported afterwards, as published for T0.""",
        choices=PROTOCOLS,
        flag="--protocol",
    )
    select: str | None = setting(
        None,
        """Step whose weights are kept: best or last. Unset: best with protocol paper, eval_every or patience, otherwise last.""",
        choices=SELECTIONS,
        flag="--select",
    )
    eval_every: int | None = setting(
        None, "Steps between two evaluations for the best step. Unset: a tenth of the steps.",
        at_least=1, flag="--eval-every",
    )  # fmt: skip
    patience: int | None = setting(
        None,
        "Early-stopping patience: evaluations without a better score. Unset: all steps are trained.",
        at_least=1,
        flag="--patience",
    )
    dev: str | None = setting(
        None,
        """Collection of validation examples, instead of a quarter of the shots. Its tasks have the same names.""",
        reads=True,
        flag="--dev",
        metavar="PATH",
    )
    dev_shots: int = setting(
        0,
        """Further shots as validation examples, instead of a quarter of the shots. They are drawn after the shots.""",
        at_least=0,
        flag="--dev-shots",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds:
            raise ConfigError("seeds is empty: expected at least one integer")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds is {self.seeds}: expected each seed once")
        for name, usual in (("similarity", "definition"), ("encoder", BACKBONE_ENCODER)):
            if getattr(self, name) != usual and self.start not in COMPARING:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, but start is {self.start!r}, which compares no tasks: leave it out"
                )
        if self.similarity == "gradients" and (self.start == "predicted" or self.encoder != BACKBONE_ENCODER):
            wrong = f"start is {self.start!r}" if self.start == "predicted" else f"encoder is {self.encoder!r}"
            raise ConfigError(
                f"{wrong}, which is of embeddings, but similarity is 'gradients': use definition or shots"
            )
        if not self.steps and (self.picks_step or self.grid):
            raise ConfigError(
                "steps is 0, so that nothing is trained, but the best of several steps or settings is asked for: leave grid, select, "
                "eval_every, patience and protocol 'paper' out"
            )
        for name in ("eval_every", "patience"):
            if getattr(self, name) is not None and self.select == "last":
                raise ConfigError(f"{name} selects the best step, but select is 'last': leave one out")
        if self.dev is not None and self.dev_shots:
            raise ConfigError(f"dev_shots is {self.dev_shots}, but dev names a collection: leave one out")
        if self.protocol == "paper" and (self.dev is not None or self.dev_shots):
            raise ConfigError("protocol is 'paper', which validates on the test examples: leave dev and dev_shots out")
        self._check_grid()

    def _check_grid(self) -> None:
        for name, values in self.grid.items():
            if name not in TUNABLE:
                raise ConfigError(f"grid has {name!r}, which is no hyperparameter of a grid: {nearest(name, TUNABLE)}")
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"grid has {name} {values}: expected each value once, and at least one")
            if name == "steps" and 0 in values:
                raise ConfigError("grid has steps 0, which trains nothing: expected at least 1")
            for value in values:
                try:
                    point: dict[str, Any] = {name: as_grid_value(name, value), "grid": {}}
                    replace(self, **point)
                except ConfigError as error:
                    raise ConfigError(f"grid has an invalid value: {error}") from None

    @property
    def picks_step(self) -> bool:
        """Whether a training is evaluated on its way, for its best step."""
        if self.select is not None:
            return self.select == "best"
        return self.protocol == "paper" or self.eval_every is not None or self.patience is not None

    @property
    def evaluation_interval(self) -> int:
        """Steps between two evaluations."""
        return self.eval_every or max(self.steps // 10, 1)


def as_grid_value(name: str, value: float) -> Any:
    """A value of a grid, an integer where its hyperparameter is one."""
    hint = settings_of(OptimizationConfig)[name][0]
    return int(value) if hint is int and float(value).is_integer() else value
