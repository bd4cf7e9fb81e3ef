"""Few-shot adaptation: from a pretraining run to unseen tasks, one adapted checkpoint per task and seed."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mhr.data import Example, Task
from mhr.data.samplers import ExampleDataset, TaskSampler
from mhr.errors import ConfigError, DataError, TrainingError
from mhr.files import make_folder, prepare_output, read_json, write_json_atomically
from mhr.training.config import to_dict
from mhr.training.pretraining import count_parameters, fit, save_result
from mhr.training.processes import processes
from mhr.training.run import RUN_FILE, RunFolder, clear
from mhr.training.settings import RunConfig
from mhr.training.starts import Start, check_mode, load_start
from mhr.training.tasks import draw_shots, make_collator, read_tasks, usable_tasks, with_shots
from mhr.training.trainer import RoutedTrainer
from mhr.training.watch import ProgressBar

ADAPT_FILE = "adapt.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One adaptation: a task, a seed, its shots, and where it goes."""

    task: Task
    seed: int
    shots: list[Example]
    folder: Path


def adapt(
    run: str,
    tasks: Sequence[str] | None = None,
    *,
    mode: str,
    output: str,
    tasks_path: str | None = None,
    shots: int | None = None,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    router_lr: float | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> list[RunFolder]:
    """Adapt the pretraining run in the folder `run` to each of `tasks` with each of `seeds`, from `shots` examples.

    mode         loaded                                                     trained
    mhr (poly)   the bank, a fresh routing row for the task                 both
    z            the same                                                   that row
    mu           the bank's uniform factor average: one plain LoRA          that LoRA
    lora         the shared adapter                                         that adapter
    full         the backbone                                               all of it (at `lr`, or AdaptConfig.full_lr)
    random       a fresh bank with the run's settings, a fresh row          both

    tasks        names; None takes every held-out task that the model can be trained on
    tasks_path   another collection than the run's
    shots ... router_lr    None takes what the run's `adapt` settings say
    resume       skip what is done in `output` already

    Returns the run folders OUTPUT/TASK/SEED, task by task; OUTPUT/adapt.json lists them. Shots are drawn by
    `mhr.training.tasks.draw_shots`, the same for all modes and methods. Raises MhrError for settings, tasks or folders that do
    not fit, before anything is written; TrainingError for a loss that is not finite; Interrupted on Ctrl-C.
    """
    if processes().num_processes > 1:
        raise ConfigError("adapt runs in one process: start it without torchrun")
    source = RunFolder.open(run)
    config = source.config()
    mode = check_mode(mode, config.method, run)
    given: dict[str, Any] = {
        "shots": shots,
        "seeds": None if seeds is None else list(seeds),
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "full_lr": lr,
        "router_lr": router_lr,
    }
    settings = dataclasses.replace(config.adapt, **{name: value for name, value in given.items() if value is not None})
    config = dataclasses.replace(config, tasks=tasks_path or config.tasks, adapt=settings)
    if not (resume and Path(output).is_dir() and any(Path(output).iterdir())):
        prepare_output(output, overwrite)
    described = {
        "mode": mode,
        "source": str(source.path.resolve()),
        "settings": to_dict(config)["adapt"],
        "tasks": config.tasks,
    }
    if resume:
        _check_same(Path(output), described)
    source.result()
    collection = read_tasks(config.tasks, config.data)
    if tasks is not None:
        collection = collection.select(list(dict.fromkeys(tasks)))
    else:
        collection = collection.held_out()
        if not len(collection):
            raise DataError(f"{config.tasks} holds no task out: name the tasks to adapt to")
    start = load_start(source, config, mode)
    kind = source.info["model_kind"]
    named = dataclasses.replace(config.data, fit=config.data.fit and tasks is None)
    collection, left_out = usable_tasks(collection, kind, start.tokenizer, named)
    if tasks is not None and left_out:
        name, reason = next(iter(left_out.items()))
        raise DataError(f"cannot adapt to task {name!r}: {reason}")
    jobs = [
        Job(task, seed, draw_shots(task, settings.shots, seed), Path(output) / quote(task.name, safe=" ") / str(seed))
        for task in collection.values()
        for seed in settings.seeds
    ]
    folder = make_folder(output)
    if overwrite and not resume:
        clear(folder)
    runs = [{"task": j.task.name, "seed": j.seed, "path": str(j.folder.relative_to(folder))} for j in jobs]
    write_json_atomically(folder / ADAPT_FILE, described | {"left_out": left_out, "runs": runs})
    with ProgressBar(len(jobs) * settings.steps, f"adapt {mode}", progress) as bar, _frozen_heap():
        return [_run(job, start, config, source, kind, bar) for job in jobs]


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Keep what lives now out of garbage collection: each Trainer collects once, over hundreds of thousands of objects
    that the libraries made at import, which takes longer than everything else that an adaptation does beside its steps."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run(job: Job, start: Start, config: RunConfig, source: RunFolder, kind: str, bar: ProgressBar) -> RunFolder:
    if (job.folder / RUN_FILE).is_file():
        done = RunFolder.open(job.folder)
        if done.status == "done":
            bar.skip(config.adapt.steps)
            return done
    bar.title(f"adapt {start.mode} {job.task.name} seed {job.seed}")
    start.begin(job.task.name, job.seed)
    settings = _settings(config, start.mode, job.seed)
    run = RunFolder.create(job.folder, overwrite=True)
    run.start(
        settings,
        kind="adapt",
        method=config.method,
        mode=start.mode,
        base=start.base,
        model_kind=kind,
        source=str(source.path.resolve()),
        tasks=[job.task.name],
        seed=job.seed,
        shots=[example.id for example in job.shots],
        parameters=count_parameters(start.model),
    )
    examples = ExampleDataset(with_shots(job.task, job.shots))
    trainer = RoutedTrainer(
        start.model,
        start.tokenizer,
        kind,
        settings.train,
        examples,
        TaskSampler(examples.sizes, seed=job.seed),
        make_collator(kind, start.tokenizer, config.data),
        run,
        start.base,
        resumable=False,
        callbacks=[bar],
    )
    fit(trainer)
    save_result(start.model, start.tokenizer, run, start.base)
    run.write(status="done", steps=settings.train.steps)
    return run


def _settings(config: RunConfig, mode: str, seed: int) -> RunConfig:
    """The settings of one adaptation: those of the run, with what `adapt` says about training."""
    few = config.adapt
    train = dataclasses.replace(
        config.train,
        steps=few.steps,
        batch_size=few.batch_size,
        accumulation=1,
        lr=few.full_lr if mode == "full" else few.lr,
        router_lr=few.router_lr,
        warmup=few.warmup,
        seed=seed,
    )
    return dataclasses.replace(config, train=train, adapt=dataclasses.replace(few, seeds=[seed]))


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
