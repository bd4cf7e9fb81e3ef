"""Texts that an answer ends at, such as an empty line, for models that were not trained to end answers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class Stops:
    """Stop strings, which may name special tokens ("<|im_end|>") and span tokens.

    lead  what may stand before every answer by a chat template (an empty reasoning), in which none is looked for
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], lead: str = ""):
        self.tokenizer, self.stops, self.lead = tokenizer, tuple(stops), lead
        # A character has up to four tokens of bytes; special tokens and those without a character may stand between.
        self._tail = 4 * max(map(len, self.stops), default=0) + 8

    def ends(self, row: Sequence[int]) -> bool:
        """Whether a generated row holds a stop string; where rows grow by tokens, asked at each, its end tells."""
        return self._find(self._words(row[-self._tail :])) is not None and self._find(self._words(row)) is not None

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The generated rows up to their first stop string, without special tokens and surrounding space."""
        plain = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [self._text(row, text).strip() for row, text in zip(rows, plain, strict=True)]

    def _text(self, row: Sequence[int], plain: str) -> str:
        words = self._words(row) if self.stops else ""
        end = self._find(words)
        if end is None:
            return plain
        words = words[:end]
        for token in self.tokenizer.all_special_tokens:
            words = words.replace(token, "")
        return words

    def _words(self, row: Sequence[int]) -> str:
        return str(self.tokenizer.decode(row, skip_special_tokens=False))

    def _find(self, words: str) -> int | None:
        if self.lead.startswith(words):
            return None
        begin = len(self.lead) if words.startswith(self.lead) else 0
        return min((found for stop in self.stops if (found := words.find(stop, begin)) >= 0), default=None)


class StopAt(StoppingCriteria):
    """Ends a row of `generate` with its first stop string. That of transformers also looks at the prompt, so that an answer could end
    before its first word at a string which began there.

    skip  tokens of a row before what is generated
    """

    def __init__(self, stops: Stops, skip: int):
        self.stops, self.skip = stops, skip

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = [self.stops.ends(row) for row in input_ids[:, self.skip :].tolist()]
        return torch.tensor(ended, device=input_ids.device)
