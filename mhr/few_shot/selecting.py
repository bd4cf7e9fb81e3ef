"""Model selection: the points of a grid, the validation examples, and the best step of each training."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mhr.data import Example, Task, TaskCollection
from mhr.data.example import examples_digest
from mhr.errors import ConfigError, DataError
from mhr.evaluation import LoadedModel, evaluate
from mhr.evaluation.measuring import fitting
from mhr.few_shot.shots import draw_shots, shots_of
from mhr.few_shot.starts import Start
from mhr.methods import BACKBONE, MODES, idle_settings
from mhr.objectives import make_objective
from mhr.runs.adapt_settings import AdaptConfig, as_grid_value
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import read_tasks
from mhr.runs.train_settings import TrainConfig

Point = dict[str, float]


def grid_points(config: RunConfig, mode: str) -> list[Point]:
    """All combinations of the grid's values that differ where a run with these settings is adapted in this mode, in the grid's order; one
    empty point without a grid."""
    idle = idle_settings(mode, config.trained_as)
    axes = {name: values for name, values in config.adapt.grid.items() if name not in idle}
    return [
        {name: as_grid_value(name, value) for name, value in zip(axes, values, strict=True)}
        for values in itertools.product(*axes.values())
    ]


def at_point(few: AdaptConfig, point: Point, mode: str) -> AdaptConfig:
    """The settings of one training of the grid; where all weights are trained, its lr is the one of all weights."""
    changes: dict[str, Any] = dict(point)
    if MODES[mode].begins == BACKBONE and "lr" in changes:
        changes["full_lr"] = changes["lr"]
    return dataclasses.replace(few, grid={}, **changes)


@dataclass(frozen=True, slots=True)
class Shots:
    """The examples of one adaptation.

    shots   what the result is trained on
    train   what is trained on while there is something to choose: the shots, or three quarters of them
    validation  the validation examples; empty where nothing is to be chosen
    where   what these are, in words: "a quarter of the shots", "dev shots", "test" or the path of a collection
    """

    shots: list[Example]
    train: list[Example]
    validation: list[Example] = field(default_factory=list)
    where: str = ""

    @property
    def refit(self) -> bool:
        """Whether the result is trained once more on all shots, as its validation examples are a part of them."""
        return len(self.train) < len(self.shots)


def data_of(task: Task, shots: Shots, test: Sequence[Example] = ()) -> str:
    """What distinguishes the examples of an adaptation, and those that it is evaluated on, from others."""
    return examples_digest([*shots.shots, *shots.validation, *test], task.definition)


def share_out(task: Task, config: RunConfig, seed: int, mode: str, dev: TaskCollection | None = None) -> Shots:
    """The shots of a task that a seed draws, and the validation examples of the protocol. `dev` is what config.adapt.dev names.

    The shots come first in the order of the draw, then the dev shots; the last quarter of the shots is the part that is
    split off where there is neither a dev set nor protocol paper. Of a dev set all examples of the task count, or those of
    its validation split where it has one, but for those that are shots or tested on. Raises DataError where there are not
    enough examples.
    """
    few = config.adapt
    n = shots_of(few, task.name)
    drawn = draw_shots(task, n, seed, more=few.dev_shots)
    shots = drawn[:n]
    if not few.picks_step and len(grid_points(config, mode)) == 1:
        return Shots(shots, shots)
    if few.protocol == "paper":
        if not task.test:
            raise DataError(
                f"task {task.name!r} has no test examples, which protocol 'paper' validates on: use held-out"
            )
        return Shots(shots, shots, task.test, "test")
    if few.dev_shots:
        return Shots(shots, shots, drawn[n:], "dev shots")
    if dev is not None:
        return Shots(shots, shots, *_of_dev(dev, task, shots))
    if n < 2:
        raise DataError(
            f"task {task.name!r} has 1 shot, of which no part can be split off for validation: use --dev-shots, or no grid"
        )
    kept = n - max(n // 4, 1)
    return Shots(shots, shots[:kept], shots[kept:], "a quarter of the shots")


def _of_dev(dev: TaskCollection, task: Task, shots: Sequence[Example]) -> tuple[list[Example], str]:
    """The validation examples that a collection has of a task, and in words where they come from."""
    own = dev[task.name]
    found = own.validation or [*own.train, *own.test]
    if not found:
        raise DataError(f"task {task.name!r} has no examples in {dev.source}: expected validation examples of it")
    used = {(example.input, example.targets) for example in (*shots, *task.test)}
    kept = [example for example in found if (example.input, example.targets) not in used]
    if not kept:
        raise DataError(
            f"task {task.name!r}: all {len(found)} examples in {dev.source} are shots or tested on, so that none is left to validate on: "
            "expected others, or use dev_shots, or say protocol 'paper'"
        )
    left_out = len(found) - len(kept)
    return kept, dev.source + (f", without {left_out} that are shots or tested on" if left_out else "")


def read_dev(config: RunConfig) -> TaskCollection | None:
    """The collection that few.dev names, with all its training examples. Raises ConfigError where it is the one that is tested on."""
    dev = config.adapt.dev
    if dev is None:
        return None
    if Path(dev).resolve() == Path(config.tasks).resolve():
        raise ConfigError(
            f"dev is {dev}, the collection that is tested on: name another one, use dev_shots, or say protocol 'paper'"
        )
    return read_tasks(dev, dataclasses.replace(config.data, max_train=None, train_seed=0))


@dataclass(frozen=True, slots=True, order=True)
class Validated:
    """How good a model was at a step: its score on the validation examples (by the task's first metric), then its loss there.

    Few examples make many equal scores; the lower loss decides among them, and then the earlier step.
    """

    score: float
    loss: float
    step: int

    def better_than(self, other: Validated | None) -> bool:
        return other is None or self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        """Weights that give a loss that is not finite are no good, whatever they happen to answer."""
        return (self.score, -self.loss) if math.isfinite(self.loss) else (-math.inf, -math.inf)


class Validation:
    """Scores the model of a Start on the validation examples of one task."""

    def __init__(
        self, start: Start, kind: str, task: Task, examples: Sequence[Example], config: RunConfig, loss: TrainConfig
    ):
        """config: of the training, by which choices are scored; loss: of the loss, the same for all trainings that it is to tell apart."""
        self.loaded = LoadedModel(start.model, start.tokenizer, kind, "the model in training", chat=config.data.chat)
        self.examples = list(examples)
        named = fitting(task.metrics, self.examples)  # shots are of no part of a test split, as metrics of MNLI are
        self.task = TaskCollection([dataclasses.replace(task, test=self.examples, metrics=named)])
        self.config = config
        self.objective = make_objective(kind, loss, self.loaded.heads)
        lengths = config.data.max_input_length, config.data.max_target_length
        self.collator = self.objective.collator(start.tokenizer, *lengths, config.data.chat)

    def __call__(self, step: int) -> Validated:
        data, train = self.config.data, self.config.train
        result = evaluate(
            self.loaded,
            self.task,
            max_input_length=data.max_input_length,
            max_target_length=data.max_target_length,
            length_norm=train.length_norm,
            precision=train.precision,
            progress=False,
        )
        (measures,) = result.tasks.values()
        return Validated(measures["score"], self.loss(), step)

    def loss(self) -> float:
        """The mean loss on the examples."""
        size = self.config.train.batch_size
        total = count = 0.0
        with self.loaded.judging(self.config.train.precision):
            for first in range(0, len(self.examples), size):
                batch = self.collator(self.examples[first : first + size])
                moved = {k: v.to(self.loaded.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                total += float(self.objective(self.loaded.model, moved).sums.sum())
                count += float(self.objective.count(batch))
        return total / max(count, 1.0)


class KeepBest(TrainerCallback):
    """Evaluates a model every few steps (only at the end with every=None), keeps the best weights, and may stop early.

    best         the best evaluation; `weights` those of the model then
    evaluations  all of them
    """

    def __init__(self, validation: Validation, start: Start, every: int | None, patience: int | None, steps: int):
        self.validation, self.start = validation, start
        self.every, self.patience, self.steps = every, patience, steps
        self.evaluations: list[Validated] = []
        self.best: Validated | None = None
        self.weights: dict[str, Tensor] = {}
        self.stale = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        if step < self.steps and (self.every is None or step % self.every):
            return
        validated = self.validation(step)
        self.evaluations.append(validated)
        if validated.better_than(self.best):
            self.best, self.weights, self.stale = validated, self.start.snapshot(), 0
        else:
            self.stale += 1
            control.should_training_stop |= self.patience is not None and self.stale >= self.patience


class StopAfter(TrainerCallback):
    """Ends a training after a step, with the learning rates that it had there in a longer one."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a search: its point, its best evaluation, all of them, and why it has no best one, where its loss was not finite."""

    point: Point
    best: Validated | None
    evaluations: list[Validated]
    diverged: str | None = None


def describe(trials: Sequence[Trial], chosen: Trial, shots: Shots) -> dict[str, Any]:
    """How a run was chosen, for run.json."""
    return {
        "on": shots.where,
        "examples": len(shots.validation),
        "refit": shots.refit,
        "trials": [
            {
                **(dict.fromkeys(("score", "loss", "step")) if t.best is None else dataclasses.asdict(t.best)),
                **({} if t.diverged is None else {"diverged": t.diverged}),
                "settings": t.point,
                "looks": [dataclasses.asdict(e) for e in t.evaluations],
            }
            for t in trials
        ],
        "chosen": trials.index(chosen),
    }
