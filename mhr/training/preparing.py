"""All that a pretraining run is made of, by its settings, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from accelerate import PartialState
from accelerate.utils import set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.adapters import kind_of
from mhr.backbones import check_precision_of, load_backbone, take_heads, untrained_modules
from mhr.contexts import attach_to_tasks, give_examples, set_apart
from mhr.data.collators import Collator
from mhr.data.example import examples_digest
from mhr.data.samplers import ExampleDataset, TaskSampler, weights_of
from mhr.errors import ConfigError
from mhr.loading import Loading
from mhr.objectives import Objective, make_objective
from mhr.objectives.fit import check_fit, notes_on
from mhr.objectives.lengths import fit_data
from mhr.objectives.masked import check_words
from mhr.objectives.packing import packed_collator
from mhr.objectives.usable import check_chats, check_long_choices, describe_head, heads_for, usable_tasks
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import read_training_tasks
from mhr.training.continuing import attach_source
from mhr.training.feeding import Feed, make_feed
from mhr.training.masters import train_whole
from mhr.training.seeding import seed_bank
from mhr.training.validation import MakeScorer, Validator, hold_validation
from mhr.training.watch import BarOnDemand


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the trainer takes, see `RoutedTrainer`.

    config  the settings, epochs as steps
    facts   what run.json says of the run from its beginning
    """

    config: RunConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    examples: ExampleDataset
    sampler: TaskSampler
    collator: Collator
    feed: Feed
    validation: Validator | None
    facts: dict[str, Any]


def prepare(
    config: RunConfig,
    state: PartialState,
    source: RunFolder | None = None,
    *,
    seeded: bool = True,
    progress: bool = False,
    scorer: MakeScorer | None = None,
) -> Prepared:
    """Load the base, read the tasks, attach the bank.

    source    the finished run that this one goes on from
    seeded    whether the adapters of `init_skills` become skills; not where a checkpoint holds what came of them
    progress  show a bar on standard error where examples are tokenised ahead
    scorer    see `pretrain`

    Raises MhrError for settings, data or models that do not fit.
    """
    set_seed(config.train.seed)
    model, tokenizer = load_backbone(config.model, config.kind, Loading.of(config), config.answers_with)
    check_precision_of(model, config.train.precision)
    kind = kind_of(model)
    check_fit(model, tokenizer, kind)
    data, lowered = fit_data(model, tokenizer, kind, config.data, config.model)
    training = read_training_tasks(config.tasks, config.data)
    tasks, left_out = usable_tasks(training, kind, tokenizer, data, config.answers_with)
    heads = heads_for(tasks, kind, config.answers_with, config.share_heads)
    if kind == "encoder":
        heads = take_heads(model, heads)
    drawn = untrained_modules(model)
    held = hold_validation(tasks, kind, config.train, heads) if config.train.validates else None
    tasks = tasks if held is None else held.tasks
    tasks, apart = set_apart(tasks, config.adapter)
    examples = ExampleDataset(tasks)
    targets: list[str] = []
    sampler = TaskSampler(
        examples.sizes,
        config.data.sampler,
        temperature=config.data.temperature,
        max_per_task=config.data.max_per_task,
        weights=weights_of(config.data.weights, examples.tasks, left_out),
        seed=config.train.seed,
    )
    epochs = config.train.epochs
    config = replace(config, train=config.train.lasting(len(sampler), state.num_processes))
    objective = make_objective(kind, config.train, heads)
    lengths = data.max_input_length, data.max_target_length
    collator = objective.collator(tokenizer, *lengths, data.chat)
    every = tasks if held is None else held.all_of(tasks)
    check_chats(collator, every)
    check_words(collator, every)
    uncounted = objective.collator(tokenizer, *lengths, data.chat)  # what is truncated here is not trained on
    check_long_choices(uncounted, every)
    validation = None
    if held is not None:
        score = None if scorer is None else scorer(model, tokenizer, kind, replace(config, data=data))
        named = {task.name: task.metrics for task in held.tasks.values()}
        validation = Validator(held.examples, collator, config.train, score, named)
    if data.packing:
        collator = packed_collator(model, objective, collator)
    if config.adapter is None:
        train_whole(model)
    else:
        if source is None:
            targets = attach_to_tasks(model, tokenizer, config.adapter, tasks).notes
        else:
            targets = [attach_source(model, source, config, list(tasks), heads)]
            give_examples(model, tokenizer, tasks.values())
        _, room = fit_data(model, tokenizer, kind, data, config.model)
        if room is not None:
            raise ConfigError(f"{room}, {config.adapter.prepended} of them before the input: set max_input_length so")
        if config.init_skills and seeded:
            seed_bank(model, config.init_skills)
    with BarOnDemand(len(examples), "tokenise", progress and state.is_main_process) as told:
        feed = make_feed(config, objective, collator, examples, state, told)
    facts = {
        "kind": "pretrain",
        "method": config.method,
        "mode": None,
        "base": config.model,
        "model_kind": kind,
        "head": describe_head(kind, heads),
        "tasks": list(tasks),
        "categories": {name: task.category for name, task in tasks.items() if task.category},
        "left_out": left_out,
        "notes": [*filter(None, (lowered, feed.note, held and held.note, apart)), *notes_on(tokenizer, kind), *targets],
        "examples": len(examples),
        "data": examples_digest(
            chain(
                examples, *(task.context for task in tasks.values()), *(() if held is None else held.examples.values())
            ),
            *(task.definition for task in tasks.values()),
        ),
        "validation": None if held is None else {task: len(part) for task, part in held.examples.items()},
        "epochs": epochs,
        "processes": state.num_processes,
        "global_batch": config.train.batch_size * config.train.accumulation * state.num_processes,
        "parameters": count_parameters(model),
        "new_modules": drawn,
    }
    return Prepared(config, model, tokenizer, objective, examples, sampler, collator, feed, validation, facts)


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """How many parameters are trained, and how many the model has."""
    parameters = list(model.parameters())
    return {
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "all": sum(p.numel() for p in parameters),
    }
