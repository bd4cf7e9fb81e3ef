"""Settings of an adaptation, documented field by field; those of a run hold them as its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mhr.checks import check_choice, check_number, check_whole
from mhr.errors import ConfigError, nearest

SCHEDULERS = ("linear", "cosine", "constant")
"""Schedules of the learning rate after the warm-up, of a run and of an adaptation."""
PROTOCOLS = ("held-out", "paper")
SELECTIONS = ("best", "last")
KNOBS = ("lr", "router_lr", "steps", "batch_size", "warmup", "length_norm", "mc_loss", "unlikely_loss")
"""Settings of AdaptConfig that a grid can search."""


@dataclass
class AdaptConfig:
    """How a run is adapted to a new task; what is not named here is as in the run's training."""

    shots: int = 32
    """Examples of the task that are trained on."""

    shots_for: dict[str, int] = field(default_factory=dict)
    """Other numbers of shots for some tasks, by name or pattern: {winogrande: 50, "*hellaswag*": 20}."""

    seeds: list[int] = field(default_factory=lambda: [13, 42, 58])
    """One adaptation per seed, which picks the shots, fresh values, their order and dropout."""

    steps: int = 1000
    """Updates of the weights."""

    batch_size: int = 8
    """Examples per update."""

    lr: float = 1e-3
    """Learning rate of the adapters."""

    router_lr: float = 0.1
    """Learning rate of the routing logits."""

    full_lr: float = 1e-4
    """Learning rate where all weights train (mode full)."""

    warmup: float = 0.06
    """Steps over which the learning rate rises: below 1 a share of all steps, otherwise their number."""

    scheduler: str | None = None
    """Learning rate after the warm-up: linear, cosine, constant. None: as in the run's training."""

    length_norm: float = 1.0
    """As train.length_norm."""

    mc_loss: float = 0.0
    """As train.mc_loss."""

    unlikely_loss: float = 0.0
    """As train.unlikely_loss."""

    grid: dict[str, list[float]] = field(default_factory=dict)
    """Values of knobs to choose from, all combinations of them: {lr: [1e-3, 1e-4], router_lr: [0.5, 0.1]}. A knob that a mode
    does not have (lr in mode z, router_lr in mode mu) is left out there; in mode full, lr is full_lr."""

    protocol: str = "held-out"
    """Where a grid or a step is chosen: held-out (on a quarter of the shots, or a dev set; the test examples are not looked at),
    or paper (on the test examples that are reported afterwards, as published for T0)."""

    select: str | None = None
    """Which step of a training counts: best or last. None: best with protocol paper, eval_every or patience, otherwise last."""

    eval_every: int | None = None
    """Steps between two looks for the best step. None: a tenth of the steps."""

    patience: int | None = None
    """Looks without a better score after which a training ends. None trains all steps."""

    dev: str | None = None
    """Collection whose tasks of the same names hold the examples that are chosen on, instead of a quarter of the shots."""

    dev_shots: int = 0
    """Further shots that are chosen on, instead of a quarter of the shots."""

    def __post_init__(self) -> None:
        for name in ("shots", "steps", "batch_size"):
            check_whole(name, getattr(self, name), at_least=1)
        for task, shots in self.shots_for.items():
            check_whole(f"shots_for {task!r}", shots, at_least=1)
        if not self.seeds:
            raise ConfigError("seeds is empty: expected at least one whole number")
        for seed in self.seeds:
            check_whole("seeds", seed, at_least=0)
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds is {self.seeds}: expected each seed once")
        for name in ("lr", "router_lr", "full_lr"):
            check_number(name, getattr(self, name), above=0)
        for name in ("warmup", "length_norm", "mc_loss", "unlikely_loss"):
            check_number(name, getattr(self, name), at_least=0)
        if self.scheduler is not None:
            check_choice("scheduler", self.scheduler, SCHEDULERS)
        check_choice("protocol", self.protocol, PROTOCOLS)
        if self.select is not None:
            check_choice("select", self.select, SELECTIONS)
        for name in ("eval_every", "patience"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), at_least=1)
                if self.select == "last":
                    raise ConfigError(f"{name} looks for the best step, but select is 'last': leave one out")
        check_whole("dev_shots", self.dev_shots, at_least=0)
        if self.dev is not None and self.dev_shots:
            raise ConfigError(f"dev_shots is {self.dev_shots}, but dev names a collection: leave one out")
        if self.protocol == "paper" and (self.dev is not None or self.dev_shots):
            raise ConfigError("protocol is 'paper', which chooses on the test examples: leave dev and dev_shots out")
        self._check_grid()

    def _check_grid(self) -> None:
        for name, values in self.grid.items():
            if name not in KNOBS:
                raise ConfigError(f"grid has {name!r}, which is no knob: {nearest(name, KNOBS)}")
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"grid has {name} {values}: expected each value once, and at least one")
            for value in values:
                try:
                    point: dict[str, Any] = {name: as_knob(name, value), "grid": {}}
                    replace(self, **point)
                except ConfigError as error:
                    raise ConfigError(f"grid has a value that cannot be: {error}") from None

    @property
    def picks_step(self) -> bool:
        """Whether a training is looked at on its way, for its best step."""
        if self.select is not None:
            return self.select == "best"
        return self.protocol == "paper" or self.eval_every is not None or self.patience is not None

    @property
    def look_every(self) -> int:
        """Steps between two looks."""
        return self.eval_every or max(self.steps // 10, 1)


def as_knob(name: str, value: float) -> Any:
    """A value of a grid, whole where the knob is."""
    return int(value) if name in ("steps", "batch_size") and float(value).is_integer() else value
