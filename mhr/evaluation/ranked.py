"""What a model says of an example that it does not answer in words of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranked:
    """scores: of every option of an example, greater is better, or the one number that is its answer; cut_*: whether its input, its
    choices were truncated; options: the texts that are scored, its choices or, where it has none, the classes of its head, none of a
    number; how: "ranking", "classification" or "regression"."""

    scores: list[float]
    cut_input: bool
    cut_choices: bool
    options: tuple[str, ...] = ()
    how: str = "ranking"

    @property
    def best(self) -> int:
        """The position of the best option, the first of equals."""
        return max(range(len(self.scores)), key=self.scores.__getitem__)

    @property
    def answer(self) -> str:
        """The best option, or the number, to six digits."""
        return self.options[self.best] if self.options else f"{self.scores[0]:.6g}"


def in_json(scores: Sequence[float]) -> list[float | None]:
    """Scores as JSON can hold them: one that is not finite is null."""
    return [score if math.isfinite(score) else None for score in scores]
