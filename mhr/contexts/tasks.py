"""The contexts of tasks: what of a task is embedded, and how a bank gets it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.config import AdapterConfig
from mhr.contexts.encoders import Encoder, encoder_of
from mhr.data.drawing import shot_order
from mhr.data.example import Example, Task, TaskCollection
from mhr.data.tokens import running_text
from mhr.errors import ConfigError, DataError
from mhr.layers import AdapterBank, attach
from mhr.layers.bank import bank_of
from mhr.method_settings.contexts import EmbeddingSettings
from mhr.method_settings.generative_adapter import GenerativeSettings


def embeds(bank: AdapterBank) -> bool:
    """Whether a bank routes new tasks by embeddings of what is known of them."""
    return bank.contexts is not None and bank.contexts.embedded


def texts_of(
    task: Task, settings: EmbeddingSettings, shots: Sequence[Example] | None = None, new: bool = False
) -> list[str]:
    """What of a task is embedded: its definition, or its shots, each an input with its answer.

    shots  None takes those that were set apart (`set_apart`), or draws them from its training examples, always the same ones
    new    whether it is for a bank that is trained already, whose settings are what they are: errors say what can be done then

    Raises DataError for a task without a definition, or with fewer training examples than asked for.
    """
    if settings.context == "definition":
        if not task.definition:
            other = "" if new else ", or take shots in its place (adapter.router.context, --similarity)"
            raise DataError(
                f"task {task.name!r} has no definition, by which it would be routed: give its rows a column definition, the same in all "
                f"of them{other}"
            )
        return [task.definition]
    if shots is None:
        shots = task.context or None
    if shots is None:
        if len(task.train) < settings.shots:
            few = max(len(task.train), 1)
            fix = (
                f"give it more, or adapt the run to it with mhr adapt --mode z --steps 0 --shots {few}"
                if new
                else f"set adapter.router.shots to {few} or fewer"
            )
            raise DataError(
                f"task {task.name!r} has {len(task.train)} training examples, fewer than the {settings.shots} shots that its context is "
                f"made of: {fix}"
            )
        shots = shot_order(task.train, task.name, 0)[: settings.shots]
    return [running_text(shot.input, shot.targets[0]) if settings.answers else shot.input for shot in shots]


def set_apart(tasks: TaskCollection, config: AdapterConfig | None) -> tuple[TaskCollection, str | None]:
    """The tasks as they are trained on, and a line for the notes: where adapters are generated from examples, some of each task become its
    `context`, always the same ones, and are not trained on; nor are others with the same inputs.

    Raises DataError for a task that has too few examples.
    """
    settings = None if config is None else config.own_settings()
    if not isinstance(settings, GenerativeSettings):
        return tasks, None
    parted = tasks.of([_parted(task, settings) for task in tasks.values()])
    sizes = sorted({len(task.context) for task in parted.values()})
    some = " to ".join(map(str, dict.fromkeys([sizes[0], sizes[-1]])))
    return parted, f"{some} training examples of each task are set apart for contexts, and not trained on"


def _parted(task: Task, settings: GenerativeSettings) -> Task:
    wanted = settings.apart(len(task.train))
    drawn = shot_order(task.train, task.name, 0)[:wanted]
    inputs = {example.input for example in drawn}
    left = [example for example in task.train if example.input not in inputs]
    if len(drawn) < wanted or not left:
        raise DataError(
            f"task {task.name!r} has {len(task.train)} training examples, of which {wanted} are set apart for contexts of "
            f"{settings.shots} shots, so that none is left to train on: set adapter.router.shots lower, or adapter.router.pool"
        )
    return dataclasses.replace(task, train=left, context=drawn)


def embed_tasks(
    tasks: Iterable[Task], settings: EmbeddingSettings, encoder: Encoder, new: bool = False
) -> dict[str, Tensor]:
    """The embedding [C] of each task, the mean of those of its texts; of each text [N, C] where they are not pooled, and where adapters are
    generated from tokens the hidden states [N, L, C] of each text, with zeros behind shorter ones. Raises DataError as `texts_of`, and `new` likewise."""
    texts = {task.name: texts_of(task, settings, new=new) for task in tasks}  # refused before anything is read
    return {name: _embedded(own, settings, encoder) for name, own in texts.items()}


def _embedded(texts: Sequence[str], settings: EmbeddingSettings, encoder: Encoder) -> Tensor:
    if isinstance(settings, GenerativeSettings):
        return encoder.states(texts, settings.tokens)
    found = encoder.embed(texts)
    return found.mean(0) if settings.pooled else found


def embed_task(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, shots: Sequence[Example]
) -> Tensor:
    """The embedding of one task (as of `embed_tasks`) for the bank on a model, from its definition or from these shots, whatever their number.
    Raises DataError for a task without a definition, ConfigError for an encoder that cannot be loaded."""
    settings = bank_of(model).config.own_settings()
    return _embedded(texts_of(task, settings, shots, new=True), settings, encoder_of(settings, model, tokenizer))


def check_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, shots: Sequence[Example]
) -> None:
    """Raise what `embed_task` raises, without embedding anything."""
    settings = bank_of(model).config.own_settings()
    texts_of(task, settings, shots, new=True)
    encoder_of(settings, model, tokenizer)


def attach_to_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: AdapterConfig, tasks: Mapping[str, Task]
) -> AdapterBank:
    """`mhr.attach` for these tasks, with their contexts where routing is computed from such.

    Raises what `attach` raises, DataError as `texts_of`, ConfigError for an encoder that cannot be loaded and for a size that is not
    its own.
    """
    settings: Any = config.own_settings() if config.routing.contexts else None
    if settings is None or not settings.embedded:
        return attach(model, config, list(tasks))
    embeddings = embed_tasks(tasks.values(), settings, encoder_of(settings, model, tokenizer))
    size, name = next(iter(embeddings.values())).shape[-1], settings.size_name
    if getattr(settings, name) not in (None, size):
        raise ConfigError(
            f"router.{name} is {getattr(settings, name)}, but embeddings of the encoder have {size}: leave it out"
        )
    bank = attach(model, dataclasses.replace(config, router={**config.router, name: size}), list(tasks))
    bank.set_contexts(embeddings, center=True)
    return bank


def give_contexts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Iterable[Task]) -> list[str]:
    """Have the bank on a model route tasks that it does not know, each by its own context and without any training: they get rows
    in its table. Returns their names; none where the bank routes by no embeddings.

    Raises DataError as `texts_of`, ConfigError for an encoder that cannot be loaded; nothing is then changed.
    """
    bank = bank_of(model)
    if not embeds(bank):
        return []
    settings = bank.config.own_settings()
    new = [task for task in tasks if task.name not in bank.tasks]
    if not new:
        return []
    embeddings = embed_tasks(new, settings, encoder_of(settings, model, tokenizer), new=True)
    bank.add_tasks([task.name for task in new])
    bank.set_contexts(embeddings)
    return list(embeddings)


def give_examples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Iterable[Task]) -> None:
    """Have the bank on a model, all of whose tasks these are, learn from their examples again, as `attach_to_tasks` does, where its method
    does that.

    Raises DataError as `texts_of`, ConfigError for an encoder that cannot be loaded.
    """
    bank = bank_of(model)
    settings: Any = bank.config.own_settings()
    if bank.contexts is not None and bank.contexts.takes_examples:
        bank.set_contexts(embed_tasks(tasks, settings, encoder_of(settings, model, tokenizer)), center=True)
