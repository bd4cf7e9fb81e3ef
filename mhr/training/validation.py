"""Validation while pretraining: how good the bank is on examples of its training tasks that it is not trained on.

Of task t, with validation examples V_t,

    loss[t]    the objective's loss without label smoothing: a mean over target tokens (over examples where choices are ranked)
    score[t]   the metric that gives t its score (`Task.metrics`, otherwise accuracy) of the answers to V_t, where all of V_t have choices
               or classes, or numbers that the data name a metric for

and a step's loss and score are their means over tasks: each task counts the same, however many examples it has. The model is
in evaluation mode: no dropout, no noise, skills that are drawn in training are averaged. Every random generator is left as it
was, so that a run that is validated has the losses of one that is not.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, TrainingArguments

from mhr.data import Example, Task, TaskCollection
from mhr.data.collators import Collator
from mhr.data.drawing import hold_out
from mhr.data.truncation import Truncation
from mhr.errors import ConfigError, DataError
from mhr.objectives import Objective
from mhr.runs.checkpoints import all_checkpoints
from mhr.runs.settings import RunConfig
from mhr.runs.train_settings import TrainConfig
from mhr.task_heads import CLASSIFY, RANK, REGRESS, TaskHeads

ROWS = 64
"""Validation examples of a task, at most, unless the settings say otherwise."""
STATE = "trainer_state.json"


class Training(Protocol):
    """What is validated, as a trainer has it."""

    objective: Objective
    state: TrainerState

    @property
    def model(self) -> Any: ...

    @property
    def args(self) -> TrainingArguments: ...

    @property
    def accelerator(self) -> Accelerator: ...


class Scorer(Protocol):
    """What answers examples and judges the answers; `mhr.evaluation.choice_scorer` makes one."""

    def __call__(self, examples: Sequence[Example]) -> list[str]:
        """The choice, class or number that the model gives each example."""

    def score(self, task: str, metrics: Sequence[str], examples: Sequence[Example], answers: Sequence[str]) -> float:
        """The first of `metrics` that fits, otherwise accuracy, of the answers to examples of one task."""


MakeScorer = Callable[[PreTrainedModel, PreTrainedTokenizerBase, str, RunConfig], Scorer]


@dataclass(frozen=True, slots=True)
class Held:
    """The tasks as they are trained on, and their validation examples by task; `note` says in one line where these are from."""

    tasks: TaskCollection
    examples: dict[str, list[Example]]
    note: str

    def all_of(self, tasks: TaskCollection) -> TaskCollection:
        """`tasks` with the validation examples among their training examples: all that a run will encode."""
        return tasks.of(
            [replace(task, train=[*task.train, *self.examples.get(task.name, ())]) for task in tasks.values()]
        )


def hold_validation(tasks: TaskCollection, kind: str, train: TrainConfig, heads: TaskHeads | None = None) -> Held:
    """The validation examples of each task, by the settings and the seed of `train`.

    Those of a validation split beside a test split stay where they are; of any other task as many as `eval_rows`, and at most
    a fifth, are drawn from its training examples by `mhr.data.drawing.hold_out`, and are not trained on. Raises DataError where
    no task has any.
    """
    most = train.eval_rows or ROWS
    examples: dict[str, list[Example]] = {}
    kept: list[Task] = []
    split, drawn, without = 0, 0, []
    for task in tasks.values():
        own = task.validation[:most]
        ranked = (
            kind == "masked" or kind == "encoder" and (heads is None or heads.heads[heads.of(task.name)].kind == RANK)
        )
        if own and not (ranked and not all(example.choices for example in own)):
            split += 1
            examples[task.name] = own
        else:
            left, out = hold_out(task.train, min(most, len(task.train) // 5), task.name, train.seed)
            if not out:
                without.append(task.name)
            else:
                drawn += 1
                examples[task.name] = out
                task = replace(task, train=left)
        kept.append(task)
    if not examples:
        raise DataError(
            f"{tasks.source or 'collection'}: none of its {len(tasks)} tasks has a validation split or 5 training examples to "
            "take one from: leave eval_every out"
        )
    parts = [
        f"those of {drawn} tasks are taken out of their training examples by seed {train.seed}" if drawn else "",
        f"those of {split} tasks are of their validation splits" if split else "",
        f"{len(without)} tasks have none, such as {without[0]!r}" if without else "",
    ]
    total = sum(map(len, examples.values()))
    often = f"{train.eval_every} steps" if train.eval_every else f"{train.eval_every_epochs:g} epochs"
    note = f"validation every {often} on {total} examples: {'; '.join(filter(None, parts))}"
    return Held(tasks.of(kept), examples, note)


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """What one validation found; losses and scores by task, score None where no task has choices."""

    step: int
    losses: dict[str, float]
    scores: dict[str, float]

    @property
    def loss(self) -> float:
        return sum(self.losses.values()) / len(self.losses)

    @property
    def score(self) -> float | None:
        return sum(self.scores.values()) / len(self.scores) if self.scores else None

    def record(self) -> dict[str, Any]:
        """The line of the metrics."""
        measures = {"loss": self.loss, "score": self.score, "losses": self.losses, "scores": self.scores}
        return {"step": self.step, "validation": measures}

    def metrics(self) -> dict[str, float]:
        """The same as Trainer names it."""
        found = {"eval_loss": self.loss}
        found |= {} if self.score is None else {"eval_score": self.score}
        found |= {f"eval_losses/{task}": value for task, value in self.losses.items()}
        return found | {f"eval_scores/{task}": value for task, value in self.scores.items()}


class Validator:
    """Validates the model of a trainer.

    examples   by task, as `hold_validation` gives them
    collator   makes their batches, without counting what is truncated in them for the run
    scorer     answers those with choices, and judges the answers; None: there is the loss alone
    metrics    by task, those that its data name

    Raises ConfigError where the best validation is to be told by a score, and there is none.
    """

    def __init__(
        self,
        examples: dict[str, list[Example]],
        collator: Collator,
        train: TrainConfig,
        scorer: Scorer | None = None,
        metrics: Mapping[str, Sequence[str]] | None = None,
    ):
        self.collator = copy(collator)
        self.collator.truncation = Truncation()
        self.train = train
        self.scorer = scorer
        self.metrics = dict(metrics or {})
        self.examples = [example for part in examples.values() for example in part]
        ranked = {task for task, part in examples.items() if scorer and all(map(self._is_scored, part))}
        self._ranked = [example for example in self.examples if example.task in ranked]
        if train.best_by == "score" and not self._ranked:
            why = "no task has choices to rank" if scorer else "nothing was given that scores"
            raise ConfigError(f"best_by is 'score', but {why}: use loss")

    def _is_scored(self, example: Example) -> bool:
        """Whether an answer to an example is one of classes or choices, or a number that the data of its task name a metric for."""
        heads: TaskHeads | None = getattr(self.collator, "heads", None)
        kind = None if heads is None else heads.heads[heads.of(example.task, example.choices)].kind
        if kind == REGRESS:
            return bool(self.metrics.get(example.task))
        return kind == CLASSIFY or len(example.choices) > 1

    def __call__(self, trainer: Training) -> ValidationResult:
        """The losses and scores at this step, the same in every process; each looks at its share of the examples."""
        # Processes that hold a part of the weights each have to call the model equally often, so they look at everything.
        sharded = any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
        parts = 1 if sharded else trainer.args.world_size
        own = slice(trainer.args.process_index, None, parts) if parts > 1 else slice(None)
        with untouched_generators(), evaluating(trainer.model), torch.no_grad():
            found = self._losses(trainer, self.examples[own])
            places = range(len(self._ranked))[own]
            answers = self.scorer(self._ranked[own]) if self.scorer and places else []
        answered = list(zip(places, answers, strict=True))
        if parts > 1:
            found, answered = gather_object(found), gather_object(answered)
        return ValidationResult(trainer.state.global_step, _means(found), self._scores(dict(answered)))

    def _losses(self, trainer: Training, examples: Sequence[Example]) -> list[tuple[str, float, float]]:
        """(task, sum, count) of each example."""
        size, found = self.train.batch_size, []
        for first in range(0, len(examples), size):
            batch = self.collator(examples[first : first + size])
            moved = {k: v.to(trainer.args.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            with trainer.accelerator.autocast():
                losses = trainer.objective(trainer.model, moved)
            found += list(zip(losses.tasks, losses.sums.tolist(), losses.counts.tolist(), strict=True))
        return found

    def _scores(self, answers: Mapping[int, str]) -> dict[str, float]:
        """Task -> its score, sorted by task; `answers` are those to `_ranked`, by place."""
        places: dict[str, list[int]] = {}
        for place, example in enumerate(self._ranked):
            places.setdefault(example.task, []).append(place)
        if self.scorer is None:
            return {}
        return {
            task: self.scorer.score(
                task, self.metrics.get(task, ()), [self._ranked[i] for i in own], [answers[i] for i in own]
            )
            for task, own in sorted(places.items())
        }


def _means(found: Sequence[tuple[str, float, float]]) -> dict[str, float]:
    """Task -> sum of sums / sum of counts, sorted by task; independent of the order of the parts but for rounding."""
    totals: dict[str, list[float]] = {}
    for task, total, count in found:
        own = totals.setdefault(task, [0.0, 0.0])
        own[0] += total
        own[1] += count
    return {task: total / max(count, 1.0) for task, (total, count) in sorted(totals.items())}


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Whatever is drawn inside the block, outside of it random numbers go on as if nothing had been."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def stalled(train: TrainConfig, state: TrainerState) -> bool:
    """Whether so many validations were no better than the best one that training ends early."""
    if train.early_stopping is None or not train.eval_every or state.best_global_step is None:
        return False
    return (state.global_step - state.best_global_step) // train.eval_every >= train.early_stopping


class BestWeights:
    """The weights of the best steps that may be asked for: of the best one so far, and of the one of every checkpoint, from which a
    run may go on. `folder` holds step-N for each."""

    def __init__(self, folder: Path, checkpoints: Path):
        self.folder = folder
        self.checkpoints = checkpoints

    def of(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def forget(self, best: int | None) -> None:
        """Delete all that neither `best` nor a checkpoint is."""
        kept = {self.of(step).name for step in (best, *self._of_checkpoints()) if step is not None}
        for path in self.folder.glob("step-*"):
            if path.name not in kept:
                shutil.rmtree(path)

    def _of_checkpoints(self) -> Iterator[int | None]:
        for checkpoint in all_checkpoints(self.checkpoints):
            if (checkpoint / STATE).is_file():
                yield TrainerState.load_from_json(str(checkpoint / STATE)).best_global_step
