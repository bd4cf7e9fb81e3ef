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
from transformers import PreTrainedTokenizerBase

from mhr.data.example import Example
from mhr.data.tokens import TokenRows, encode, encode_answers, encode_pairs, encode_prompts, pad
from mhr.errors import ConfigError

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

    def _counted(self, rows: TokenRows) -> list[list[int]]:
        """The tokens of the rows, after counting how many were cut."""
        self.seen += len(rows.cut)
        self.truncated += sum(rows.cut)
        return rows.ids

    def _padded(self, rows: Sequence[list[int]], left: bool = False) -> Batch:
        """input_ids and attention_mask [B, L]."""
        ids, mask = pad(rows, self.tokenizer.pad_token_id, left=left)
        return {"input_ids": ids, "attention_mask": mask}


class Seq2SeqCollator(Collator):
    """Encoder-decoders: input_ids, attention_mask [B, L]; labels [B, T], IGNORED where padded."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        targets = encode(self.tokenizer, [e.targets[0] for e in examples], self.max_target_length)
        return {**self.prompts(examples), "labels": pad(self._counted(targets), IGNORED)[0]}

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """What `generate` takes: input_ids, attention_mask, task_ids."""
        inputs = encode(self.tokenizer, [e.input for e in examples], self.max_input_length)
        return {**self._padded(self._counted(inputs)), "task_ids": [e.task for e in examples]}


class CausalCollator(Collator):
    """Decoders: prompt, target and end token in one row; labels are IGNORED up to the target. Long prompts lose their
    beginning, since what is asked stands at their end."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        prompts = self._prompts(examples)
        targets = self._counted(
            encode_answers(self.tokenizer, [e.targets[0] for e in examples], self.max_target_length)
        )
        rows = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        labels = [[IGNORED] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
        return {**self._padded(rows), "labels": pad(labels, IGNORED)[0], "task_ids": [e.task for e in examples]}

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """What `generate` takes, padded on the left: input_ids, attention_mask, task_ids."""
        return {**self._padded(self._prompts(examples), left=True), "task_ids": [e.task for e in examples]}

    def _prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        return self._counted(encode_prompts(self.tokenizer, [e.input for e in examples], self.max_input_length))


class RankingCollator(Collator):
    """Encoders that score (input, choice) pairs: one row a pair, the examples' choices one after the other.

    input_ids, attention_mask (and token_type_ids where the tokenizer makes them) [sum of counts, L]; labels [B], the
    position of the right choice; choice_counts, a list of B numbers; task_ids, one a row. Only inputs are cut, never
    choices; `max_input_length` is that of a pair.
    """

    def __call__(self, examples: Sequence[Example]) -> Batch:
        pairs = encode_pairs(self.tokenizer, examples, self.max_input_length)
        batch = self._padded(self._counted(pairs))
        if pairs.types is not None:
            batch["token_type_ids"] = pad(pairs.types, 0)[0]
        return {
            **batch,
            "labels": torch.tensor([e.choices.index(e.targets[0]) for e in examples]),
            "choice_counts": [len(e.choices) for e in examples],
            "task_ids": [e.task for e in examples for _ in e.choices],
        }
