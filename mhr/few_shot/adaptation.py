"""One adaptation: a run, a mode, a task and a seed; trained once, or once for every point of a grid of which the best is kept."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from mhr.contexts import check_context, embed_task, embeds
from mhr.data import Example, Task, TaskCollection
from mhr.data.collators import Collator
from mhr.data.samplers import ExampleDataset, TaskSampler
from mhr.data.truncation import Truncation
from mhr.errors import DivergedError, MhrError, TrainingError
from mhr.few_shot.lorahub import Hub, found_at, loras_of, search_weights
from mhr.few_shot.rows import FirstRow, check_comparable, find_first_row, training_tasks
from mhr.few_shot.selecting import (
    KeepBest,
    Shots,
    StopAfter,
    Trial,
    Validation,
    at_point,
    data_of,
    describe,
    grid_points,
    share_out,
)
from mhr.few_shot.shots import with_shots
from mhr.few_shot.starts import Start, head_of_run
from mhr.files import make_folder
from mhr.methods import BACKBONE, BANK, MODES
from mhr.objectives import Objective, make_objective
from mhr.objectives.usable import describe_head, heads_for
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.run import RUN_FILE, RunFolder
from mhr.runs.settings import RunConfig
from mhr.runs.train_settings import TrainConfig
from mhr.task_heads import RANK, TaskHeads
from mhr.training.feeding import encoded_once
from mhr.training.peak import peak_memory
from mhr.training.preparing import count_parameters
from mhr.training.pretraining import fit
from mhr.training.results import save_result
from mhr.training.trainer import RoutedTrainer
from mhr.training.watch import ProgressBar

TRIALS = "trials"


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What is adapted to what, and the folder it goes to. It knows no model, so it can be sent to any process.

    run     path of the pretraining run
    task    name of the task
    """

    run: str
    mode: str
    task: str
    seed: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Preparation:
    """What all adaptations of one run in one mode share.

    source       the pretraining run; config: its settings, with those of the adaptations
    start        the model, and where each adaptation begins
    tasks        the collection; validation: what `AdaptConfig.dev` names
    """

    source: RunFolder
    config: RunConfig
    start: Start
    tasks: TaskCollection
    validation: TaskCollection | None = None

    @property
    def kind(self) -> str:
        return self.source.info["model_kind"]

    def heads(self, adaptation: Adaptation) -> TaskHeads | None:
        """The head of the task that is adapted to."""
        head = head_of_run(self.source, self.config)
        return heads_for(self.tasks.select([adaptation.task]), self.kind, head, ranks=head != RANK)

    def shots(self, adaptation: Adaptation) -> Shots:
        """The examples that an adaptation is trained on, and its validation examples."""
        task = self.tasks[adaptation.task]
        return share_out(task, self.config, adaptation.seed, adaptation.mode, self.validation)

    def check_batches(self, adaptations: Sequence[Adaptation]) -> None:
        """Raise DataError where the examples of an adaptation cannot become a batch: choices that are the same once they are
        truncated, or that leave no room for an input."""
        for train in self.trainings():
            for adaptation in adaptations:
                collator = self.collator(make_objective(self.kind, train, self.heads(adaptation)))
                shots = self.shots(adaptation)
                collator([*shots.shots, *shots.validation])

    def check_beginnings(self, adaptations: Sequence[Adaptation]) -> None:
        """Raise what keeps adaptations from beginning, before anything is written: rows of training tasks that cannot be compared with new
        tasks, tasks that routing has no context of, too few LoRAs to weigh."""
        if MODES[self.start.mode].searches:
            loras_of(self.source, self.config.adapt.experts)
        for adaptation in adaptations:
            if self.takes_rows:
                check_comparable(self._collection(), self.tasks[adaptation.task], self.config.adapt, self.start)
            if self.start.bank is not None and embeds(self.start.bank):
                shots = self.shots(adaptation).shots
                check_context(self.start.model, self.start.tokenizer, self.tasks[adaptation.task], shots)

    def first_row(self, adaptation: Adaptation, shots: Sequence[Example]) -> FirstRow | None:
        """Where the routing of a task begins, by the setting `start`; None where that is a fresh row, or the mode has none. The model
        stands where the adaptation begins."""
        if not self.takes_rows:
            return None
        # The loss whose gradients are compared has no ranking terms.
        collator = self.collator(make_objective(self.kind, heads=self.heads(adaptation)))
        task = self.tasks[adaptation.task]
        return find_first_row(self.start, self.config.adapt, self._collection, task, shots, adaptation.seed, collator)

    @property
    def takes_rows(self) -> bool:
        """Whether adaptations begin with a row that is not drawn fresh."""
        return self.config.adapt.start != "fresh" and copies_rows(self.start.mode, self.config)

    def _collection(self) -> TaskCollection:
        """The tasks that the run was trained on."""
        return training_tasks(self.source)

    def trainings(self) -> list[TrainConfig]:
        """The settings of training at the points of the grid, one for each objective that they ask for."""
        points = points_of(self.config, self.start.mode)
        settings = [
            dataclasses.replace(self.config.train, mc_loss=few.mc_loss, unlikely_loss=few.unlikely_loss)
            for few in points
        ]
        return list({type(make_objective(self.kind, train)): train for train in settings}.values())

    def collator(self, objective: Objective) -> Collator:
        """What makes batches of the examples."""
        data = self.config.data
        return objective.collator(self.start.tokenizer, data.max_input_length, data.max_target_length, data.chat)

    def steps_of(self, adaptation: Adaptation) -> int:
        """Optimizer steps of an adaptation, if no training ends early."""
        steps = [few.steps for few in points_of(self.config, adaptation.mode)]
        return sum(steps) + (max(steps) if self.shots(adaptation).refit else 0)


def copies_rows(mode: str, config: RunConfig) -> bool:
    """Whether a run with these settings that is adapted in a mode begins with a row of its own, which could be another task's."""
    return config.adapter is not None and config.adapter.has_rows and MODES[mode].begins == BANK


def ranks(config: RunConfig, mode: str) -> bool:
    """Whether a ranking loss is on at any point of the grid."""
    return any(point.mc_loss or point.unlikely_loss for point in points_of(config, mode))


def points_of(config: RunConfig, mode: str) -> list[AdaptConfig]:
    """The settings of every training of the grid."""
    return [at_point(config.adapt, point, mode) for point in grid_points(config, mode)]


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep what lives now out of garbage collection: each Trainer collects once, over hundreds of thousands of objects
    that the libraries made at import, which takes longer than everything else that an adaptation does beside its steps."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def finished(adaptation: Adaptation, prepared: Preparation) -> RunFolder | None:
    """The adaptation, where its folder holds it already. Raises TrainingError where that was made of other examples."""
    if not (adaptation.folder / RUN_FILE).is_file():
        return None
    run = RunFolder.open(adaptation.folder)
    if run.status != "done":
        return None
    data = data_of(prepared.tasks[adaptation.task], prepared.shots(adaptation))
    if run.info.get("data", data) != data:
        raise TrainingError(
            f"{run.path} was adapted to other examples than {prepared.config.tasks} now gives of task {adaptation.task!r}: make the "
            "collection what it was, or choose another output folder"
        )
    return run


def make(adaptation: Adaptation, prepared: Preparation, bar: ProgressBar) -> RunFolder:
    """Make one adaptation, unless its folder holds it already."""
    mode = adaptation.mode
    done = finished(adaptation, prepared)
    if done is not None:
        bar.skip(prepared.steps_of(adaptation))
        return done
    bar.title(f"adapt {mode} {adaptation.task} seed {adaptation.seed}")
    points = points_of(prepared.config, mode)
    run = RunFolder.create(adaptation.folder, overwrite=True)
    work = _Work(adaptation, prepared, prepared.shots(adaptation), run, bar)
    first = work.settings(points[0])
    work.begin(first, work.shots.train)
    if not work.shots.validation:
        work.train(first, work.shots.shots, run)
        work.save(first.adapt.steps)
        return run
    search = _Search(work)
    for number, few in enumerate(points):
        search.try_out(number, few)
    search.finish()
    return run


@dataclass
class _Work:
    """One adaptation under way: how it trains, and what it writes.

    begun      the shots that the model began with last; embedding: of the task then (`context`); found: where its routing began, unless that is
               a fresh row
    """

    adaptation: Adaptation
    prepared: Preparation
    shots: Shots
    run: RunFolder
    bar: ProgressBar
    truncation: Truncation = field(default_factory=Truncation)
    begun: Sequence[Example] | None = None
    embedding: Tensor | None = None
    found: FirstRow | None = None

    @property
    def start(self) -> Start:
        return self.prepared.start

    @cached_property
    def heads(self) -> TaskHeads | None:
        return self.prepared.heads(self.adaptation)

    def context(self, examples: Sequence[Example]) -> Tensor | None:
        """The embedding of the task, where its routing is computed from one: of its definition, or of these examples."""
        model = self.start.model
        if self.start.bank is None or not embeds(self.start.bank):
            return None
        return embed_task(model, self.start.tokenizer, self.task, examples)

    @cached_property
    def hub(self) -> Hub:
        """The LoRAs of the run that are weighed."""
        few = self.prepared.config.adapt
        return Hub.draw(self.prepared.source, few.experts, few.candidates, self.adaptation.seed)

    @property
    def task(self) -> Task:
        return self.prepared.tasks[self.adaptation.task]

    def settings(self, few: AdaptConfig) -> RunConfig:
        """The settings of one training: those of the run, with what `few` says about training."""
        config, seed = self.prepared.config, self.adaptation.seed
        whole = MODES[self.adaptation.mode].begins == BACKBONE
        optimization = few.optimization() | ({"lr": few.full_lr} if whole else {})
        optimization["steps"] = max(few.steps, 1)  # of a training; where there is none, none is begun
        train = dataclasses.replace(
            config.train,
            **optimization,
            accumulation=1,
            switch_to_mu_at=None,
            anneal_to_mu=None,
            anneal_by=TrainConfig.anneal_by,
            seed=seed,
        )
        adapt = dataclasses.replace(few, seeds=[seed])
        return dataclasses.replace(config, train=train, adapt=adapt, continue_from=None, continue_as=None)

    def begin(self, settings: RunConfig, examples: Sequence[Example]) -> None:
        """Put the model where a training on these shots begins, and write what is known before its first step."""
        source = self.prepared.source
        self.return_to_start(examples)
        self.run.start(
            settings,
            kind="adapt",
            method=settings.method,
            mode=self.start.mode,
            base=self.start.base,
            model_kind=self.prepared.kind,
            source=str(source.path.resolve()),
            tasks=[self.task.name],
            seed=self.adaptation.seed,
            protocol=settings.adapt.protocol if self.shots.validation else AdaptConfig.protocol,
            selection=self.run.info.get("selection"),
            shots=[example.id for example in self.shots.shots],
            data=data_of(self.task, self.shots),
            head=describe_head(self.prepared.kind, self.heads),
            **self._found(),
            parameters=count_parameters(self.start.model),
        )

    def _found(self) -> dict[str, Any]:
        """Where its routing begins, for run.json, unless that is a fresh row."""
        if self.found is not None:
            return {"start": self.found.told}
        contexts = None if self.start.bank is None else self.start.bank.contexts
        nearest = {} if contexts is None else contexts.nearest
        return {"start": {"row": "prototype", "task": nearest[self.task.name]}} if self.task.name in nearest else {}

    def return_to_start(self, examples: Sequence[Example]) -> None:
        """Put the model where every training on these shots begins. Contexts and first rows are of no others, which validate then."""
        if examples != self.begun:
            self.begun = examples
            self.embedding = self.context(examples)
            self.start.begin(self.task.name, self.adaptation.seed, self.heads, self.embedding)
            self.found = self.prepared.first_row(self.adaptation, examples)
        else:
            self.start.begin(self.task.name, self.adaptation.seed, self.heads, self.embedding)
        if self.found is not None:
            self.start.put_row(self.found.row)

    def train(
        self, settings: RunConfig, examples: Sequence[Example], log: RunFolder, *callbacks: TrainerCallback
    ) -> None:
        """Train the model from where it stands; the log of the training goes to the folder `log`."""
        if not settings.adapt.steps:
            return
        if MODES[self.adaptation.mode].searches:
            self.search(settings, examples, log, *callbacks)
            return
        drawn = ExampleDataset(with_shots(self.task, examples))
        objective = make_objective(self.prepared.kind, settings.train, self.heads)
        collator = self.prepared.collator(objective)
        trainer = RoutedTrainer(
            self.start.model,
            self.start.tokenizer,
            objective,
            drawn,
            TaskSampler(drawn.sizes, seed=self.adaptation.seed),
            collator,
            log,
            self.start.base,
            feed=encoded_once(collator, drawn),
            resumable=False,
            callbacks=[*callbacks, self.bar],
        )
        try:
            fit(trainer)
        except (MhrError, KeyboardInterrupt) as fault:
            self.run.write(status=log.status if log.status != "new" else "failed")
            if isinstance(fault, DivergedError):
                self.bar.skip(settings.train.steps - trainer.state.global_step)
            raise
        self.truncation.add(trainer.truncation)
        self.bar.skip(settings.train.steps - trainer.state.global_step)

    def search(
        self, settings: RunConfig, examples: Sequence[Example], log: RunFolder, *callbacks: TrainerCallback
    ) -> None:
        """What a mode does that trains nothing: weigh the LoRAs of the run."""
        watching = [*callbacks, self.bar]
        try:
            search_weights(self.hub, self.start, self.prepared.kind, self.task, settings, examples, log, watching)
        except (MhrError, KeyboardInterrupt) as fault:
            self.run.write(status="failed" if isinstance(fault, MhrError) else "interrupted")
            raise

    def save(self, step: int) -> None:
        """Write what the model is now, after a step of a training that the run's metrics tell."""
        if step and MODES[self.adaptation.mode].searches:
            self.run.info["found"] = found_at(step, self.run)
        save_result(self.start.model, self.start.tokenizer, self.run, self.start.base, step)
        self.run.write(status="done", steps=step, truncated=self.truncation.describe(), memory=peak_memory())


class _Search:
    """Trainings of one adaptation, of which the best one is kept."""

    def __init__(self, work: _Work):
        self.work = work
        self.trials: list[Trial] = []
        self.chosen: tuple[Trial, RunConfig, KeepBest] | None = None

    def try_out(self, number: int, few: AdaptConfig) -> None:
        """Train one point of the grid and validate it."""
        work, start = self.work, self.work.start
        settings = work.settings(few)
        work.return_to_start(work.shots.train)
        asked = work.prepared.config.adapt
        # One yardstick for all points: losses with unequal ranking terms would not compare.
        loss = {name: getattr(asked, name) for name in ("mc_loss", "unlikely_loss", "length_norm")}
        judged = dataclasses.replace(settings.train, **loss)
        validation = Validation(start, work.prepared.kind, work.task, work.shots.validation, settings, judged)
        best = KeepBest(validation, start, few.evaluation_interval if few.picks_step else None, few.patience, few.steps)
        point = grid_points(work.prepared.config, start.mode)[number]
        try:
            work.train(settings, work.shots.train, self._folder(number), best)
        except DivergedError as error:
            self.trials.append(Trial(point, None, best.evaluations, str(error)))
            return
        assert best.best is not None
        self.trials.append(Trial(point, best.best, best.evaluations))
        if self.chosen is None or best.best.better_than(self.chosen[0].best):
            self.chosen = self.trials[-1], settings, best
        else:
            best.weights.clear()

    def finish(self) -> None:
        """Write the best one, after a training on all shots where it saw a part of them. Raises DivergedError where there is none."""
        if self.chosen is None:
            points = "" if len(self.trials) == 1 else f"no point of the grid trains; with {self.trials[0].point} "
            raise DivergedError(f"{points}{self.trials[0].diverged}")
        work, shots = self.work, self.work.shots
        trial, settings, best = self.chosen
        assert trial.best is not None
        work.run.info["selection"] = describe(self.trials, trial, shots)
        work.begin(settings, shots.shots)
        if shots.refit:
            work.train(settings, shots.shots, work.run, StopAfter(trial.best.step))
        else:
            work.start.restore(best.weights)
            shutil.copy(self._folder(self.trials.index(trial)).metrics_file, work.run.metrics_file)
        work.save(trial.best.step)

    def _folder(self, number: int) -> RunFolder:
        """Where the log of a trial goes."""
        return RunFolder(make_folder(self.work.run.path / TRIALS / str(number)), {})
