"""A model that computes NaN has no answer: without a word its first choice, or some token, would count as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor
from transformers import LogitsProcessor

from mhr.data.example import Example
from mhr.errors import DivergedError
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.ranked import Ranked


def check_scores(loaded: LoadedModel, examples: Sequence[Example], ranked: Sequence[Ranked]) -> None:
    """Raise DivergedError for an example with a score that is NaN, or whose highest is not finite."""
    for example, found in zip(examples, ranked, strict=True):
        if any(map(math.isnan, found.scores)) or not math.isfinite(max(found.scores)):
            _refuse(loaded, f"scores {found.scores[:4]} for an example of task {example.task!r}")


class NumbersOnly(LogitsProcessor):
    """Notes whether a logit of a next token [rows, vocabulary] is NaN, where the logits are: `check` looks, since looking at each step
    would wait for a GPU. In its place goes 0, with which a token can still be drawn."""

    def __init__(self, loaded: LoadedModel):
        self.loaded = loaded
        self._spoiled: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found = scores.isnan()
        here = found.any()
        self._spoiled = here if self._spoiled is None else self._spoiled | here
        return scores.masked_fill(found, 0.0)

    def check(self) -> None:
        """Raise DivergedError where one was NaN."""
        if self._spoiled is not None and self._spoiled:
            _refuse(self.loaded, "logits that are NaN")


def _refuse(loaded: LoadedModel, found: str) -> NoReturn:
    raise DivergedError(
        f"{loaded.description} computes {found}: its weights are damaged, or numbers overflow (it is loaded in "
        f"{str(loaded.model.dtype).removeprefix('torch.')}): try dtype float32 or bfloat16, and precision 'no'"
    )
