"""One adaptation: a task and a seed, trained once, or once for every point of a grid of which the best one is kept."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerCallback

from mhr.data import Example, Task
from mhr.data.samplers import ExampleDataset, TaskSampler
from mhr.errors import TrainingError
from mhr.few_shot.selecting import Judge, LookOut, Shots, StopAfter, Trial, at_point, describe, grid_points
from mhr.few_shot.shots import with_shots
from mhr.few_shot.starts import Start
from mhr.files import make_folder
from mhr.methods import BACKBONE, MODES
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.run import RUN_FILE, RunFolder
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import make_collator
from mhr.training.pretraining import count_parameters, fit, save_result
from mhr.training.trainer import RoutedTrainer
from mhr.training.watch import ProgressBar

TRIALS = "trials"


@dataclass(frozen=True, slots=True)
class Job:
    """One adaptation: a task, a seed, its examples, and where it goes."""

    task: Task
    seed: int
    shots: Shots
    folder: Path


def ranks(config: RunConfig, mode: str) -> bool:
    """Whether a ranking loss is on at any point of the grid."""
    points = (at_point(config.adapt, point, mode) for point in grid_points(config.adapt, mode))
    return any(few.mc_loss or few.unlikely_loss for few in points)


def check_batches(jobs: Sequence[Job], config: RunConfig, kind: str, start: Start) -> None:
    """Raise DataError where the examples of an adaptation cannot become a batch: choices that are the same once they are cut,
    or that leave no room for an input."""
    collator = make_collator(kind, start.tokenizer, config.data, ranks(config, start.mode))
    for job in jobs:
        collator([*job.shots.shots, *job.shots.judged])


def steps_of(job: Job, config: RunConfig, mode: str) -> int:
    """Updates of one adaptation, if no training ends early."""
    points = [at_point(config.adapt, point, mode) for point in grid_points(config.adapt, mode)]
    return sum(few.steps for few in points) + (max(few.steps for few in points) if job.shots.refit else 0)


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep what lives now out of garbage collection: each Trainer collects once, over hundreds of thousands of objects
    that the libraries made at import, which takes longer than everything else that an adaptation does beside its steps."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_job(job: Job, start: Start, config: RunConfig, source: RunFolder, bar: ProgressBar) -> RunFolder:
    """Make one adaptation, unless its folder holds it already."""
    mode = start.mode
    if (job.folder / RUN_FILE).is_file():
        done = RunFolder.open(job.folder)
        if done.status == "done":
            bar.skip(steps_of(job, config, mode))
            return done
    bar.title(f"adapt {mode} {job.task.name} seed {job.seed}")
    points = [at_point(config.adapt, point, mode) for point in grid_points(config.adapt, mode)]
    run = RunFolder.create(job.folder, overwrite=True)
    work = _Work(job, start, source, run, bar)
    if not job.shots.judged:
        settings = _settings(config, points[0], mode, job.seed)
        work.begin(settings)
        work.train(settings, job.shots.shots, run)
        work.save(settings.train.steps)
        return run
    work.begin(_settings(config, points[0], mode, job.seed))
    search = _Search(work, config)
    for number, few in enumerate(points):
        search.try_out(number, few)
    search.finish()
    return run


def _settings(config: RunConfig, few: AdaptConfig, mode: str, seed: int) -> RunConfig:
    """The settings of one training: those of the run, with what `few` says about training."""
    optimization = few.optimization() | ({"lr": few.full_lr} if MODES[mode].begins == BACKBONE else {})
    train = dataclasses.replace(
        config.train, **optimization, accumulation=1, switch_to_mu_at=None, anneal_to_mu=None, seed=seed
    )
    return dataclasses.replace(config, train=train, adapt=dataclasses.replace(few, seeds=[seed]))


@dataclass
class _Work:
    """One adaptation under way: how it trains, and what it writes."""

    job: Job
    start: Start
    source: RunFolder
    run: RunFolder
    bar: ProgressBar

    @property
    def kind(self) -> str:
        return self.source.info["model_kind"]

    def begin(self, settings: RunConfig) -> None:
        """Put the model where every adaptation of this task and seed begins, and write what is known before its first step."""
        self.start.begin(self.job.task.name, self.job.seed)
        self.run.start(
            settings,
            kind="adapt",
            method=settings.method,
            mode=self.start.mode,
            base=self.start.base,
            model_kind=self.kind,
            source=str(self.source.path.resolve()),
            tasks=[self.job.task.name],
            seed=self.job.seed,
            protocol=settings.adapt.protocol,
            selection=self.run.info.get("selection"),
            shots=[example.id for example in self.job.shots.shots],
            parameters=count_parameters(self.start.model),
        )

    def train(
        self, settings: RunConfig, examples: Sequence[Example], log: RunFolder, *callbacks: TrainerCallback
    ) -> None:
        """Train the model from where it stands; the log of the training goes to the folder `log`."""
        drawn = ExampleDataset(with_shots(self.job.task, examples))
        trainer = RoutedTrainer(
            self.start.model,
            self.start.tokenizer,
            self.kind,
            settings.train,
            drawn,
            TaskSampler(drawn.sizes, seed=self.job.seed),
            make_collator(self.kind, self.start.tokenizer, settings.data, settings.train.ranks),
            log,
            self.start.base,
            resumable=False,
            callbacks=[*callbacks, self.bar],
        )
        try:
            fit(trainer)
        except (TrainingError, KeyboardInterrupt):
            self.run.write(status=log.status if log.status != "new" else "failed")
            raise
        self.bar.skip(settings.train.steps - trainer.state.global_step)

    def save(self, step: int) -> None:
        save_result(self.start.model, self.start.tokenizer, self.run, self.start.base)
        self.run.write(status="done", steps=step)


class _Search:
    """Trainings of one adaptation, of which the best one is kept."""

    def __init__(self, work: _Work, config: RunConfig):
        self.work = work
        self.config = config
        self.trials: list[Trial] = []
        self.chosen: tuple[Trial, RunConfig, LookOut] | None = None

    def try_out(self, number: int, few: AdaptConfig) -> None:
        """Train one point of the grid and look at it."""
        work, job = self.work, self.work.job
        settings = _settings(self.config, few, work.start.mode, job.seed)
        work.start.begin(job.task.name, job.seed)
        judge = Judge(work.start, work.kind, job.task, job.shots.judged, settings)
        watch = LookOut(judge, work.start, few.look_every if few.picks_step else None, few.patience, few.steps)
        work.train(settings, job.shots.train, self._folder(number), watch)
        assert watch.best is not None
        point = grid_points(self.config.adapt, work.start.mode)[number]
        self.trials.append(Trial(point, watch.best, watch.looks))
        if self.chosen is None or watch.best.better_than(self.chosen[0].best):
            self.chosen = self.trials[-1], settings, watch
        else:
            watch.weights.clear()

    def finish(self) -> None:
        """Write the best one, after a training on all shots where it saw a part of them."""
        assert self.chosen is not None
        work, shots = self.work, self.work.job.shots
        trial, settings, watch = self.chosen
        work.run.info["selection"] = describe(self.trials, trial, shots)
        work.begin(settings)
        if shots.refit:
            work.train(settings, shots.shots, work.run, StopAfter(trial.best.step))
        else:
            work.start.restore(watch.weights)
            shutil.copy(self._folder(self.trials.index(trial)).metrics_file, work.run.metrics_file)
        work.save(trial.best.step)

    def _folder(self, number: int) -> RunFolder:
        """Where the log of a trial goes."""
        return RunFolder(make_folder(self.work.run.path / TRIALS / str(number)), {})
