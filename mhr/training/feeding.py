"""How examples come to a training: encoded ahead or as they are drawn, in which order, by how many processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState

from mhr.data.cache import CacheError, TokenDataset, encode_ahead, forking_tokenizers, pays
from mhr.data.collators import Batch, Collator
from mhr.data.samplers import ExampleDataset, LengthGroups
from mhr.data.truncation import Truncation
from mhr.errors import ConfigError
from mhr.objectives import Objective
from mhr.runs.settings import RunConfig

COUNTS = "truncation"
"""Under which a batch carries the `Truncation` of its own texts."""


@dataclass(frozen=True, slots=True)
class Feed:
    """What a trainer draws from besides the examples themselves.

    rows      the examples by their tokens; None: they are encoded as they are drawn
    groups    what groups them by length
    workers   processes that make the batches; 0: the training process
    note      one line for the run where this is not as it would be, or None
    """

    rows: TokenDataset | None = None
    groups: LengthGroups | None = None
    workers: int = 0
    note: str | None = None

    def forking(self) -> Any:
        """A context to train in, in which processes may begin."""
        return forking_tokenizers() if self.workers else nullcontext()


class CountedBatches:
    """A collator for a data loader: its batches are of examples or of items of a TokenDataset, and carry the counts of what was
    truncated in them, so that these are of what was trained on, whichever process made the batch and however far ahead."""

    def __init__(self, collator: Collator):
        self.collator = collator

    def __call__(self, items: Sequence[Any]) -> Batch:
        counts = self.collator.truncation = Truncation()
        if isinstance(items[0], tuple):
            tasks, rows = zip(*items, strict=True)
            batch = self.collator.collate_rows(rows, tasks)  # type: ignore[attr-defined]
        else:
            batch = self.collator(items)
        return {**batch, COUNTS: counts}


def make_feed(
    config: RunConfig,
    objective: Objective,
    collator: Collator,
    examples: ExampleDataset,
    state: PartialState,
    told: Callable[[int], None] | None = None,
) -> Feed:
    """The feed that `config.data` asks for; of the processes of a machine one fills the cache, and the others read it.

    told  called with the number of examples that were encoded since the last call

    Raises ConfigError for a cache where tokens depend on more than the example, CacheError where a cache that was asked for cannot
    be written, and DataError for an example that cannot be encoded.
    """
    data, train = config.data, config.train
    side_by_side = train.batch_size * state.num_processes
    if data.cache and not collator.by_rows:
        raise ConfigError(
            "data.cache is true, but rows of answer choices are encoded as they are drawn, which an encoder and ranking losses "
            "train on: leave it out"
        )
    stored = data.cache
    if stored is None:
        stored = collator.by_rows and pays(len(examples), train.steps * train.accumulation * side_by_side)
    rows, note = None, None
    if stored or (data.group_by_length and collator.by_rows):
        every = list(examples)
        with state.local_main_process_first():
            try:
                rows = encode_ahead(collator, every, stored=stored, workers=data.workers, told=told)  # type: ignore[arg-type]
            except CacheError as error:
                if data.cache:
                    raise
                rows = encode_ahead(collator, every, stored=False, workers=data.workers)  # type: ignore[arg-type]
                note = f"tokens are not kept for later runs: {error}"
    groups = None
    if data.group_by_length:
        groups = LengthGroups(
            objective.input_lengths(collator.tokenizer, list(examples)) if rows is None else rows.lengths,
            side_by_side,
            train.seed,
        )
    return Feed(rows, groups, data.workers, note)


def encoded_once(collator: Collator, examples: ExampleDataset) -> Feed:
    """The feed of few examples, each of which is drawn many times: their tokens are made before and held in memory, where they depend on
    nothing but the example. Raises DataError for one that cannot be encoded."""
    return Feed(encode_ahead(collator, list(examples), stored=False) if collator.by_rows else None)  # type: ignore[arg-type]
