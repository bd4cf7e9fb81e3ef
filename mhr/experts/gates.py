"""Gates of finished LoRAs, each trained on its LoRA's own task with everything else frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.adapters.base import kind_of
from mhr.data import Task, TaskCollection
from mhr.data.samplers import ExampleDataset, TaskSampler
from mhr.errors import DataError, TaskError
from mhr.files import folder_name, make_folder
from mhr.layers.attach import bank_of
from mhr.methods import BY_TOKEN
from mhr.objectives import make_objective
from mhr.objectives.lengths import fit_data
from mhr.routing.phatgoose import PhatgooseRouter
from mhr.runs.route_settings import RouteConfig
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig
from mhr.runs.train_settings import TrainConfig
from mhr.training.pretraining import fit
from mhr.training.signals import Interrupted
from mhr.training.trainer import RoutedTrainer
from mhr.training.watch import ProgressBar


def tasks_of(names: Sequence[str], own: Sequence[str], collection: TaskCollection, method: str) -> TaskCollection:
    """The task of each LoRA, called as its LoRA is: `names` of LoRAs, and what each is for, `own`.

    Raises TaskError for a LoRA that is for no task of the collection, or for one without training examples.
    """
    found = []
    for name, task in zip(names, own, strict=True):
        if task not in collection or not collection[task].train:
            what = "which has no training examples there" if task in collection else "which is no task there"
            raise TaskError(
                f"method {method!r} trains a gate for each LoRA on its own task, but one is for {task!r}, {what} ({collection.source}): name the "
                "collection with --tasks, and folders of LoRAs as its tasks"
            )
        found.append(_renamed(collection[task], name))
    return TaskCollection(found, collection.source)


def as_one_task(collection: TaskCollection, name: str) -> TaskCollection:
    """The training examples of all tasks as those of one, called as one of the adapters, none of which is chosen by a task. Raises
    DataError where there are none."""
    examples = [
        dataclasses.replace(example, task=name) for task in collection.training().values() for example in task.train
    ]
    if not examples:
        raise DataError(f"{collection.source} has no training examples: name a collection that has, with --tasks")
    return TaskCollection([Task(name, train=examples)], collection.source)


def _renamed(task: Task, name: str) -> Task:
    examples = [dataclasses.replace(example, task=name) for example in task.train]
    return dataclasses.replace(task, name=name, train=examples, test=[], validation=[])


def train_gates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: TaskCollection,
    config: RunConfig,
    asked: RouteConfig,
    folder: Path,
    *,
    progress: bool = True,
) -> None:
    """Train the gates of the bank on `model`, one LoRA after the other, and leave them as its directions.

    tasks   the task of each LoRA of the bank, by its name
    folder  where each training's metrics go, in a folder of the LoRA's name

    `asked.steps` optimizer steps each, at `asked.lr`. Raises TrainingError for a loss that is not finite.
    """
    bank = bank_of(model)
    kind = kind_of(model)
    data = fit_data(model, tokenizer, kind, config.data, config.model)[0]
    objective = make_objective(kind, _training(config, asked))
    collator = objective.collator(tokenizer, data.max_input_length, data.max_target_length, data.chat)
    for parameter in bank.adapter_parameters():
        parameter.requires_grad_(False)
    routers = [router for router in bank.groups.values() if isinstance(router, PhatgooseRouter)]
    with ProgressBar(objective.train.steps * len(tasks), "gates", progress) as bar:
        for skill, task in enumerate(tasks.values()):
            bar.title(f"gate {task.name}")
            drawn = ExampleDataset(TaskCollection([task]))
            log = RunFolder(make_folder(folder / folder_name(task.name)), {})
            with ExitStack() as gates:
                for router in routers:
                    gates.enter_context(router.gating(skill))
                trainer = RoutedTrainer(
                    model,
                    tokenizer,
                    objective,
                    drawn,
                    TaskSampler(drawn.sizes, seed=objective.train.seed),
                    collator,
                    log,
                    config.model,
                    resumable=False,
                    callbacks=[bar],
                )
                try:
                    fit(trainer)
                except Interrupted:
                    raise Interrupted(
                        f"stopped at gate {skill + 1} of {len(tasks)}; gates are trained in one go, so the same command begins again"
                    ) from None
    for router in routers:
        router.look()
    model.eval()


def _training(config: RunConfig, asked: RouteConfig) -> TrainConfig:
    return dataclasses.replace(
        config.train,
        steps=asked.steps,
        batch_size=asked.batch_size,
        router_lr=asked.lr or BY_TOKEN[asked.method].gate_lr,
        seed=asked.seed,
        log_every=10,
    )
