"""Inputs with a mask -> batches, for masked language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from mhr.data.chat_format import ChatFormat
from mhr.data.collators import Batch, Collator
from mhr.data.example import Example
from mhr.data.mask_tokens import MaskWords, check_mask_token, encode_masked, masked_lengths
from mhr.data.tokens import pad


class MaskedCollator(Collator):
    """Masked language models: one row an example, answered at one place by one token for each choice.

    input_ids, attention_mask (and token_type_ids where the tokenizer makes them) [B, L]; places int64 [B], where the mask is;
    words int64 [sum of counts], the tokens of the choices (`Example.compared`), one example's after the other's; choice_counts, a list of B integers;
    labels [B], the position of the right choice among its example's; task_ids, B names. Only the fields of a prompt are truncated.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_input_length: int = 512,
        max_target_length: int = 128,
        chat: ChatFormat | None = None,
    ):
        super().__init__(tokenizer, max_input_length, max_target_length, chat)
        check_mask_token(tokenizer)
        self.words = MaskWords(tokenizer)

    def __call__(self, examples: Sequence[Example]) -> Batch:
        examples = [replace(e, choices=e.compared) for e in examples]
        rows = encode_masked(self.tokenizer, examples, self.max_input_length)
        tasks = [e.task for e in examples]
        self.truncation.note("inputs", tasks, rows.cut)
        batch = self._padded(rows.ids)
        if rows.types is not None:
            batch["token_type_ids"] = pad(rows.types, 0)[0]
        return {
            **batch,
            "places": torch.tensor(rows.places),
            "words": torch.tensor([token for example in examples for token in self.words(example)]),
            "labels": torch.tensor([e.choices.index(e.targets[0]) for e in examples]),
            "choice_counts": [len(e.choices) for e in examples],
            "task_ids": tasks,
        }

    def too_long(self, examples: Sequence[Example]) -> list[bool]:
        """Whether each input has more tokens than are kept."""
        return [length > self.max_input_length for length in masked_lengths(self.tokenizer, examples)]
