"""One example as a generator is trained on it: its tokens, which of them are trained on, and what was truncated."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

from mhr.data.collators import CausalCollator
from mhr.data.example import Example
from mhr.data.tokens import IGNORED, shared
from mhr.errors import ConfigError
from mhr.evaluation.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class ShownToken:
    """text: of the vocabulary; trained: whether it is predicted in training; cut: tokens of the whole row that are missing before
    it (where two places are truncated, all of them are counted at the first, and the second has -1)."""

    id: int
    text: str
    trained: bool
    cut: int = 0


@dataclass(frozen=True, slots=True)
class ShownRow:
    """task, id: of the example; tokens: the row; whole: how many tokens it has before anything is truncated; rendered: whether by a chat
    template; last_only: whether the last turn alone is trained on though all were asked for."""

    task: str
    id: str
    tokens: list[ShownToken]
    whole: int
    rendered: bool
    last_only: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def show_row(loaded: LoadedModel, example: Example) -> ShownRow:
    """The row of an example, with the lengths and the chat format of the model. Raises ConfigError for an encoder, which reads pairs,
    and an encoder-decoder, whose rows are its input and its target."""
    collators = [loaded.collator(*loaded.lengths()), loaded.collator(sys.maxsize, sys.maxsize)]
    if not all(isinstance(collator, CausalCollator) for collator in collators):
        raise ConfigError(
            f"{loaded.description} is of kind {loaded.kind!r}, expected a decoder, whose rows are one text"
        )
    row, whole = (collator.encode_rows([example])[0] for collator in collators)
    begun, ended = shared(row.ids, whole.ids), shared(row.ids[::-1], whole.ids[::-1])
    gaps: dict[int, int] = {}
    if len(whole.ids) > len(row.ids):
        gaps[begun] = len(whole.ids) - len(row.ids)
        if begun + ended < len(row.ids):
            gaps[len(row.ids) - ended] = -1
    texts = [loaded.tokenizer.decode([token]) for token in row.ids]
    tokens = [
        ShownToken(token, text, label != IGNORED, gaps.get(i, 0))
        for i, (token, text, label) in enumerate(zip(row.ids, texts, row.labels, strict=True))
    ]
    rendered = collators[0].chat.renders(example)
    return ShownRow(example.task, example.id, tokens, len(whole.ids), rendered, row.last_only)
