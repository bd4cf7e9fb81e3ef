"""What of a task collection a model can be trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mhr.data import Example, Task, TaskCollection
from mhr.data.collators import CausalCollator, Collator
from mhr.data.labels import check_answers, check_classes, task_head
from mhr.data.mask_tokens import without_mask
from mhr.errors import ConfigError, DataError
from mhr.objectives.objective import make_objective, objective_of
from mhr.runs.data_settings import DataConfig
from mhr.task_heads import MLM, RANK, TaskHeads, join_heads, only_ranks


def usable_tasks(
    tasks: TaskCollection,
    kind: str,
    tokenizer: PreTrainedTokenizerBase | None,
    data: DataConfig,
    head: str = RANK,
) -> tuple[TaskCollection, dict[str, str]]:
    """The tasks that have training examples, what the kind of model learns from with the setting `head`, not more choices than
    `data.max_choices`, and, with `data.fit`, inputs that fit by the tokenizer, which is needed for that alone.

    Returns them and, by name, why each other one is left out. Raises DataError where none is left.
    """
    kept, left_out = [], {}
    for task in tasks.values():
        reason = (
            _unusable(task, kind, data, head) or (data.fit and _too_long(task, kind, tokenizer, data, head)) or None
        )
        if reason:
            left_out[task.name] = reason
        else:
            kept.append(task)
    if not kept:
        first = next(iter(left_out.items()), None)
        example = f", as {first[0]!r}: {first[1]}" if first else ""
        raise DataError(f"{tasks.source or 'collection'}: none of its {len(tasks)} tasks can be used{example}")
    return tasks.of(kept), left_out


def check_chats(collator: Collator, tasks: TaskCollection) -> None:
    """Raise MhrError, before anything is trained, where conversations cannot be rendered: by a tokenizer without a chat template, or
    by one that refuses those of a task, or whose system turn leaves no room for a question, see `render_samples`. Raises
    ConfigError for settings of turns where nothing is rendered."""
    rendered = render_samples(collator, (example for task in tasks.values() for example in task.train))
    if not rendered and (collator.chat.system is not None or collator.chat.train_on != "last"):
        name = "system" if collator.chat.system is not None else "train_on"
        raise ConfigError(
            f"{name} is given, but no row is a conversation, and plain text has no turns: leave it out, or render every row "
            "(--chat-template auto)"
        )


def check_long_choices(collator: Collator, tasks: TaskCollection) -> None:
    """Raise DataError, before anything is trained, where choices are the same once they are truncated, or leave no room for an input.

    Only choices with about as many bytes as there is room for tokens are encoded: shorter ones cannot be so.
    """
    shortest = min(collator.max_input_length, collator.max_target_length)
    examples = [] if collator.by_rows else [example for task in tasks.values() for example in task.train]
    seen = {(example.choices, example.targets): example for example in reversed(examples)}
    for example in reversed(seen.values()):
        if example.choices and 2 * max(len(choice.encode()) for choice in example.choices) + 8 >= shortest:
            collator([example])


def heads_for(
    tasks: TaskCollection, kind: str, head: str, share: bool = False, ranks: bool = False
) -> TaskHeads | None:
    """The heads that usable tasks get with the settings `head` and `share_heads`; None for a model without heads, which generates or
    ranks choices with its one output; ranks: where some tasks of a run have heads, one that ranks is among them.

    Raises DataError for examples to judge on whose answers no head can give, ConfigError for a head on a model that generates.
    """
    if kind != "encoder":
        how, usual_head = ("in words of its own", "auto") if kind != "masked" else ("at the mask of a prompt", MLM)
        for name, value, usual in (("head", head, ("auto", usual_head)), ("share_heads", share, (False,))):
            if value not in usual:
                raise ConfigError(
                    f"{name} is {value!r}, but a {kind} model answers {how}: leave it out, or ask for an encoder (--kind encoder)"
                )
        return None
    found = {task.name: task_head(task, head) for task in tasks.values()}
    if only_ranks(found.values()) and not ranks:
        return None
    for task in tasks.values():
        check_classes(task, found[task.name])
        for split, examples in (("validation", task.validation), ("test", task.test)):
            check_answers(task, found[task.name], examples, split)
    return join_heads(found, share)


def describe_head(kind: str, heads: TaskHeads | None) -> Any:
    """What run.json says of what a model answers with: its heads, "rank" without any, "mlm", None where it generates."""
    if kind == "masked":
        return MLM
    if kind != "encoder":
        return None
    return RANK if heads is None else heads.to_json()


def mask_fault(kind: str, examples: Sequence[Example]) -> str | None:
    """Why a kind of model and the prompt of a task do not go together, or None: a mask is what a masked language model answers at,
    and it alone."""
    if kind == "masked":
        return next((f"it {reason}" for reason in map(without_mask, examples) if reason), None)
    if any(example.pieces for example in examples):
        return (
            "its prompt has {mask}, which only a masked language model answers at: use --head mlm, or leave {mask} out"
        )
    return None


def render_samples(collator: Collator, examples: Iterable[Example]) -> int:
    """Render rows as they are trained on, and return how many: of each task and order of speakers, with and without tools, the first
    and the one with the longest system turn. What a template refuses, it refuses for one of these."""
    if not isinstance(collator, CausalCollator):
        return 0
    first: dict[Any, Example] = {}
    longest: dict[Any, tuple[int, Example]] = {}
    for example in examples:
        if not collator.chat.renders(example):
            continue
        shape = (example.task, tuple(turn["role"] for turn in example.messages), bool(example.tools))
        first.setdefault(shape, example)
        system = sum(len(turn["content"]) for turn in example.messages if turn["role"] == "system")
        size = system + len(repr(example.tools))
        if size > longest.get(shape, (0,))[0]:
            longest[shape] = size, example
    samples = {id(e): e for e in (*first.values(), *(e for _, e in longest.values()))}
    if samples:
        collator.chat_rows().rows(list(samples.values()), collator.chat.train_on)
    return len(samples)


def _unusable(task: Task, kind: str, data: DataConfig, head: str) -> str | None:
    if not task.train:
        return "it has no training examples"
    reason = mask_fault(kind, task.train) or (_without_head(task, head) if kind == "encoder" else None)
    if reason:
        return reason
    most = max(len(example.choices) for example in task.train)
    if data.max_choices is not None and most > data.max_choices:
        return f"it has {most} answer choices, more than max_choices {data.max_choices}"
    return None


def _without_head(task: Task, head: str) -> str | None:
    """Why no head goes with a task."""
    try:
        task_head(task, head)
    except DataError as error:
        return str(error)
    return None


def _too_long(
    task: Task, kind: str, tokenizer: PreTrainedTokenizerBase | None, data: DataConfig, head: str
) -> str | None:
    """Why a task's inputs do not fit."""
    assert tokenizer is not None
    heads = None if kind != "encoder" else join_heads({task.name: task_head(task, head)})
    objective = make_objective(kind, heads=heads)
    examples = [*task.train, *task.test]
    chats = [e for e in examples if objective_of(kind).shares_row and data.chat.renders(e)]
    plain = [e for e in examples if not (objective_of(kind).shares_row and data.chat.renders(e))]
    lengths = objective.input_lengths(tokenizer, plain) if plain else []
    if chats:
        rows = CausalCollator(tokenizer, sys.maxsize, sys.maxsize, data.chat).encode_inputs(chats)
        lengths += map(len, rows.ids)
    longest = max(lengths)
    limit = data.max_input_length
    return f"its longest input has {longest} tokens, more than {limit}" if longest > limit else None
