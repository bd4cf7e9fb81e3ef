"""Which tasks a run trains on: the collection of its settings, and what of it fits its model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from mhr.data import Task, TaskCollection, load_tasks
from mhr.data.choice_collators import CHOICE_COLLATORS
from mhr.data.collators import CausalCollator, Collator, RankingCollator, Seq2SeqCollator
from mhr.errors import DataError
from mhr.runs.settings import DataConfig

COLLATORS: dict[str, type[Collator]] = {
    "seq2seq": Seq2SeqCollator,
    "causal": CausalCollator,
    "encoder": RankingCollator,
}


_log = logging.getLogger("mhr")
_told: set[str] = set()


def read_tasks(path: str, data: DataConfig, *, quiet: bool = False) -> TaskCollection:
    """The collection at `path`, read as `data` says. What its reader notes is told, unless `quiet`."""
    collection = load_tasks(
        path,
        definitions=data.definitions,
        positives=data.positives,
        column_map=data.column_map,
        split_list=data.split_list,
        subset=data.subset,
        template=data.template,
        on_bad_row=data.on_bad_row,
    )
    if not quiet:
        tell(f"{path}: {note}" for note in collection.notes)
    return collection


def tell(lines: Iterable[str]) -> None:
    """Say each line once, on the logger "mhr", which prints to standard error by default; of several processes the first does."""
    for line in lines:
        if line not in _told and os.environ.get("RANK", "0") == "0":
            _told.add(line)
            _log.warning(line)


def make_collator(kind: str, tokenizer: PreTrainedTokenizerBase, data: DataConfig, ranks: bool = False) -> Collator:
    """The collator of a kind of model; with `ranks`, the one that puts all choices into a batch (`TrainConfig.ranks`)."""
    collators = {**COLLATORS, **CHOICE_COLLATORS} if ranks else COLLATORS
    return collators[kind](tokenizer, data.max_input_length, data.max_target_length)


def usable_tasks(
    tasks: TaskCollection, kind: str, tokenizer: PreTrainedTokenizerBase | None, data: DataConfig
) -> tuple[TaskCollection, dict[str, str]]:
    """The tasks that have training examples, choices where an encoder needs them and not more than `data.max_choices`, and,
    with `data.fit`, inputs that fit by the tokenizer, which is needed for that alone.

    Returns them and, by name, why each other one is left out. Raises DataError where none is left.
    """
    kept, left_out = [], {}
    for task in tasks.values():
        reason = (
            _unusable(task, kind, data)
            or (data.fit and _too_long(task, kind, tokenizer, data.max_input_length))
            or None
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


def _unusable(task: Task, kind: str, data: DataConfig) -> str | None:
    if not task.train:
        return "it has no training examples"
    if kind == "encoder" and not all(example.choices for example in task.train):
        return "it has no choices to rank, which an encoder needs"
    most = max(len(example.choices) for example in task.train)
    if data.max_choices is not None and most > data.max_choices:
        return f"it has {most} answer choices, more than max_choices {data.max_choices}"
    return None


def _too_long(task: Task, kind: str, tokenizer: PreTrainedTokenizerBase | None, limit: int) -> str | None:
    """Why a task's inputs do not fit; an encoder reads each choice behind its input."""
    assert tokenizer is not None
    examples = [*task.train, *task.test]
    pairs = [max(e.choices, key=len) for e in examples] if kind == "encoder" else None
    longest = max(map(len, tokenizer([e.input for e in examples], pairs, verbose=False)["input_ids"]))
    return f"its longest input has {longest} tokens, more than {limit}" if longest > limit else None
