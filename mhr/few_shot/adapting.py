"""Few-shot adaptation: from a pretraining run to unseen tasks, one adapted checkpoint per task and seed."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback

from mhr.data import Example, Task, TaskCollection
from mhr.data.choice_collators import beginnings
from mhr.data.samplers import ExampleDataset, TaskSampler
from mhr.errors import ConfigError, DataError, TrainingError, nearest
from mhr.few_shot.selecting import (
    Judge,
    LookOut,
    Shots,
    StopAfter,
    Trial,
    at_point,
    describe,
    grid_points,
    read_dev,
    share_out,
)
from mhr.few_shot.shots import with_shots
from mhr.few_shot.starts import Start, check_mode, load_start
from mhr.files import folder_name, make_folder, prepare_output, read_json, write_json_atomically
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.config import to_dict
from mhr.runs.run import RUN_FILE, RunFolder, clear
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import make_collator, read_tasks, usable_tasks
from mhr.training.pretraining import count_parameters, fit, save_result
from mhr.training.processes import check_precision, processes
from mhr.training.trainer import RoutedTrainer
from mhr.training.watch import ProgressBar

ADAPT_FILE = "adapt.json"
TRIALS = "trials"


@dataclass(frozen=True, slots=True)
class Job:
    """One adaptation: a task, a seed, its examples, and where it goes."""

    task: Task
    seed: int
    shots: Shots
    folder: Path


def adapt(
    run: str,
    tasks: Sequence[str] | None = None,
    *,
    mode: str,
    output: str,
    tasks_path: str | None = None,
    template: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    **few: Any,
) -> list[RunFolder]:
    """Adapt the pretraining run in the folder `run` to each of `tasks` with each of the seeds, from a few examples.

    mode         loaded                                                     trained
    mhr (poly)   the bank, a fresh routing row for the task                 both
    z            the same                                                   that row
    mu           the bank's uniform factor average: one plain LoRA          that LoRA
    lora         the shared adapter                                         that adapter
    full         the backbone                                               all of it (at `lr`, or AdaptConfig.full_lr)
    random       a fresh bank with the run's settings, a fresh row          both

    tasks        names; None takes every held-out task that the model can be trained on
    tasks_path   another collection than the run's
    template     other prompt templates than the run's
    resume       skip what is done in `output` already; tasks that are not named now stay listed there
    few          fields of AdaptConfig (shots, seeds, steps, lr, grid, protocol ...); None and what is not given are as the
                 run's `adapt` settings say

    Without a grid and without a look for the best step, each adaptation is one training, and its last step counts. With
    one, the protocol says what is chosen on: `mhr.few_shot.selecting.share_out`.

    Returns the run folders OUTPUT/TASK/SEED, task by task; OUTPUT/adapt.json lists them, and each run.json says the protocol
    and how it was chosen. Shots are drawn by `mhr.few_shot.shots.draw_shots`, the same for all modes and methods. Raises
    MhrError for settings, tasks or folders that do not fit, before anything is written; TrainingError for a loss that is not
    finite; Interrupted on Ctrl-C.
    """
    if processes().num_processes > 1:
        raise ConfigError("adapt runs in one process: start it without torchrun")
    source = RunFolder.open(run)
    config = few_shot_settings(source.config(), tasks_path, template, few)
    mode = check_mode(mode, config, run)
    check_precision(config.train.precision)
    if not (resume and Path(output).is_dir() and any(Path(output).iterdir())):
        prepare_output(output, overwrite)
    described = {
        "mode": mode,
        "source": str(source.path.resolve()),
        "settings": to_dict(config)["adapt"],
        "tasks": config.tasks,
        "template": config.data.template,
    }
    if resume:
        _check_same(Path(output), described)
    source.result()
    collection = named_tasks(config, tasks)
    dev = read_dev(config)
    start = load_start(source, config, mode)
    kind = source.info["model_kind"]
    collection, left_out = fitting_tasks(collection, tasks is not None, kind, start.tokenizer, config)
    jobs = [
        Job(
            task,
            seed,
            share_out(task, config.adapt, seed, mode, dev),
            Path(output) / folder_name(task.name) / str(seed),
        )
        for task in collection.values()
        for seed in config.adapt.seeds
    ]
    check_batches(jobs, config, kind, start)
    folder = make_folder(output)
    if overwrite and not resume:
        clear(folder)
    described["left_out"] = left_out
    described["notes"] = ranking_notes(collection) if kind != "encoder" and ranks(config, mode) else []
    described["runs"] = [{"task": j.task.name, "seed": j.seed, "path": str(j.folder.relative_to(folder))} for j in jobs]
    write_json_atomically(folder / ADAPT_FILE, _with_earlier(folder, described))
    steps = sum(steps_of(job, config, mode) for job in jobs)
    with ProgressBar(steps, f"adapt {mode}", progress) as bar, frozen_heap():
        return [run_job(job, start, config, source, bar) for job in jobs]


def few_shot_settings(
    config: RunConfig, tasks_path: str | None, template: str | None, few: dict[str, Any]
) -> RunConfig:
    """The settings of a run with other few-shot ones. Raises ConfigError for an unknown one."""
    known = [f.name for f in dataclasses.fields(AdaptConfig)]
    for name in few:
        if name not in known:
            raise ConfigError(f"unknown few-shot setting {name!r}: {nearest(name, known)}")
    given = {name: value for name, value in few.items() if value is not None}
    if "lr" in given:
        given.setdefault("full_lr", given["lr"])
    data = config.data if template is None else dataclasses.replace(config.data, template=template)
    return dataclasses.replace(
        config, tasks=tasks_path or config.tasks, data=data, adapt=dataclasses.replace(config.adapt, **given)
    )


def named_tasks(config: RunConfig, names: Sequence[str] | None) -> TaskCollection:
    """The tasks of a collection by their names, or those that it holds out. Raises TaskError and DataError."""
    collection = read_tasks(config.tasks, config.data)
    for name in config.adapt.shots_for:
        if not set(name) & set("*?["):
            collection[name]  # a name that is no pattern and no task is a slip of the pen
    if names is not None:
        return collection.select(list(dict.fromkeys(names)))
    held_out = collection.held_out()
    if not len(held_out):
        raise DataError(f"{config.tasks} holds no task out: name the tasks to adapt to")
    return held_out


def fitting_tasks(
    collection: TaskCollection, named: bool, kind: str, tokenizer: PreTrainedTokenizerBase | None, config: RunConfig
) -> tuple[TaskCollection, dict[str, str]]:
    """The tasks that the model can be trained on, and why others are left out; an error where those were asked for by name."""
    data = dataclasses.replace(config.data, fit=config.data.fit and not named)
    kept, left_out = usable_tasks(collection, kind, tokenizer, data)
    if named and left_out:
        name, reason = next(iter(left_out.items()))
        raise DataError(f"cannot adapt to task {name!r}: {reason}")
    return kept, left_out


def ranks(config: RunConfig, mode: str) -> bool:
    """Whether a ranking loss is on at any point of the grid."""
    points = (at_point(config.adapt, point, mode) for point in grid_points(config.adapt, mode))
    return any(few.mc_loss or few.unlikely_loss for few in points)


def ranking_notes(collection: TaskCollection) -> list[str]:
    """A line for every task on whose choices a ranking loss has a hard time."""
    notes = []
    for task in collection.values():
        pair = next(filter(None, (beginnings(example) for example in task.train)), None)
        if pair is not None:
            notes.append(
                f"task {task.name!r}: choice {pair[0]!r:.40} is the beginning of choice {pair[1]!r:.40}; only the end token "
                "tells them apart, and unlikely_loss pushes against both"
            )
    return notes


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
    train = dataclasses.replace(
        config.train,
        steps=few.steps,
        batch_size=few.batch_size,
        accumulation=1,
        lr=few.full_lr if mode == "full" else few.lr,
        router_lr=few.router_lr,
        warmup=few.warmup,
        scheduler=few.scheduler or config.train.scheduler,
        length_norm=few.length_norm,
        mc_loss=few.mc_loss,
        unlikely_loss=few.unlikely_loss,
        switch_to_mu_at=None,
        anneal_to_mu=None,
        seed=seed,
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


def _with_earlier(folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    """What adapt.json says of `described` adaptations and of earlier ones of other tasks in the same folder."""
    if not (folder / ADAPT_FILE).is_file():
        return described
    before = read_json(folder / ADAPT_FILE, TrainingError)
    earlier = [run for run in before["runs"] if run not in described["runs"]]
    return described | {
        "left_out": before["left_out"] | described["left_out"],
        "notes": list(dict.fromkeys([*before["notes"], *described["notes"]])),
        "runs": [*earlier, *described["runs"]],
    }


def _check_same(folder: Path, described: dict[str, Any]) -> None:
    """Raise TrainingError where `folder` holds adaptations that were made in another way."""
    if not (folder / ADAPT_FILE).is_file():
        return
    before = read_json(folder / ADAPT_FILE, TrainingError)
    for key, value in described.items():
        if before.get(key) != value:
            raise TrainingError(
                f"{folder} holds adaptations with {key} {before.get(key)!r}, not {value!r}: resume them with the same "
                "settings, or choose another output folder"
            )
