"""Examples -> batches, for the three kinds of models.

Every batch is a dict of tensors and of `task_ids`, the names of the tasks of its rows, which stay on the host. Texts
that are too long are cut, and counted: `truncated` of `seen` texts. The counts are those of this process, so data
loaders with worker processes do not add to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from mhr.data.example import Example
from mhr.errors import ConfigError, DataError

IGNORED = -100
"""The label of positions that carry no loss."""

Batch = dict[str, Any]


class Collator(ABC):
    """Common part: lengths in tokens, their counts, and padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_input_length: int = 512, max_target_length: int = 128):
        for name, value in (("max_input_length", max_input_length), ("max_target_length", max_target_length)):
            if value < 2:
                raise ConfigError(f"{name} is {value}, expected at least 2 tokens")
        self.tokenizer = tokenizer
        self.max_input_length = max_input_length
        self.max_target_length = max_target_length
        self.seen = 0
        self.truncated = 0

    @abstractmethod
    def __call__(self, examples: Sequence[Example]) -> Batch:
        """The batch that training and scoring take."""

    def _count(self, tokens: int, limit: int) -> None:
        self.seen += 1
        self.truncated += tokens > limit

    def _tokens(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """Token ids with the tokenizer's special tokens, at most `limit` each."""
        whole = self.tokenizer(list(texts), verbose=False)["input_ids"]
        for position, ids in enumerate(whole):
            self._count(len(ids), limit)
            if len(ids) > limit:
                cut = self.tokenizer(texts[position], truncation=True, max_length=limit)
                whole[position] = cut["input_ids"]
        return whole

    def _padded(self, rows: Sequence[list[int]], side: str = "right") -> Batch:
        """input_ids and attention_mask [B, L]."""
        ids = _pad(rows, self.tokenizer.pad_token_id, side)
        return {"input_ids": ids, "attention_mask": _pad([[1] * len(r) for r in rows], 0, side)}


class Seq2SeqCollator(Collator):
    """Encoder-decoders: input_ids, attention_mask [B, L]; labels [B, T], IGNORED where padded."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        labels = self._tokens([e.targets[0] for e in examples], self.max_target_length)
        return {**self.prompts(examples), "labels": _pad(labels, IGNORED)}

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """What `generate` takes: input_ids, attention_mask, task_ids."""
        inputs = self._tokens([e.input for e in examples], self.max_input_length)
        return {**self._padded(inputs), "task_ids": [e.task for e in examples]}


class CausalCollator(Collator):
    """Decoders: prompt, target and end token in one row; labels are IGNORED up to the target. Long prompts lose their
    beginning, since what is asked stands at their end."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        prompts = self._prompt_tokens(examples)
        # The space parts the target from the prompt, as in running text.
        spaced = [" " + e.targets[0] for e in examples]
        targets = self.tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]
        rows, labels = [], []
        for prompt, ids in zip(prompts, targets, strict=True):
            self._count(len(ids) + 1, self.max_target_length)
            target = [*ids[: self.max_target_length - 1], self.tokenizer.eos_token_id]
            rows.append(prompt + target)
            labels.append([IGNORED] * len(prompt) + target)
        return {**self._padded(rows), "labels": _pad(labels, IGNORED), "task_ids": [e.task for e in examples]}

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """What `generate` takes, padded on the left: input_ids, attention_mask, task_ids."""
        return {**self._padded(self._prompt_tokens(examples), "left"), "task_ids": [e.task for e in examples]}

    def _prompt_tokens(self, examples: Sequence[Example]) -> list[list[int]]:
        rows = []
        for ids in self.tokenizer([e.input for e in examples], verbose=False)["input_ids"]:
            # Some tokenizers close every text; a prompt stays open.
            ids = ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids
            self._count(len(ids), self.max_input_length)
            rows.append(ids[-self.max_input_length :])
        return rows


class RankingCollator(Collator):
    """Encoders that score (input, choice) pairs: one row a pair, the examples' choices one after the other.

    input_ids, attention_mask (and token_type_ids where the tokenizer makes them) [sum of counts, L]; labels [B], the
    position of the right choice; choice_counts, a list of B numbers; task_ids, one a row. Only inputs are cut, never
    choices; `max_input_length` is that of a pair.
    """

    def __call__(self, examples: Sequence[Example]) -> Batch:
        counts = [len(_choices(e)) for e in examples]
        inputs = [e.input for e in examples for _ in e.choices]
        offered = [c for e in examples for c in e.choices]
        whole = self.tokenizer(inputs, offered, verbose=False)
        for ids in whole["input_ids"]:
            self._count(len(ids), self.max_input_length)
        if max(map(len, whole["input_ids"])) > self.max_input_length:
            self._check_room(examples)
            whole = self.tokenizer(inputs, offered, truncation="only_first", max_length=self.max_input_length)
        batch = self.tokenizer.pad(whole, return_tensors="pt")
        labels = torch.tensor([e.choices.index(e.targets[0]) for e in examples])
        return {
            **batch,
            "labels": labels,
            "choice_counts": counts,
            "task_ids": [e.task for e in examples for _ in e.choices],
        }

    def _check_room(self, examples: Sequence[Example]) -> None:
        for example in examples:
            alone = self.tokenizer([""] * len(example.choices), list(example.choices), verbose=False)["input_ids"]
            for choice, ids in zip(example.choices, alone, strict=True):
                if len(ids) >= self.max_input_length:
                    raise DataError(
                        f"task {example.task!r}, example {example.id!r}: choice {choice!r:.40} alone takes {len(ids)} tokens, "
                        f"which leaves no room for the input in {self.max_input_length}: raise max_input_length"
                    )


def _choices(example: Example) -> tuple[str, ...]:
    if not example.choices:
        raise DataError(
            f"task {example.task!r}, example {example.id!r}: no choices to rank; tasks of free generation need a generating model"
        )
    return example.choices


def _pad(rows: Sequence[list[int]], value: int, side: str = "right") -> Tensor:
    return pad_sequence(
        [torch.tensor(r, dtype=torch.long) for r in rows], batch_first=True, padding_value=value, padding_side=side
    )
