"""Drawing tokens at random instead of taking the likeliest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mhr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Each token is drawn with probability `softmax(logits / temperature)` among the likeliest tokens that have `top_p` of the
    probability together (nucleus sampling, arXiv 1904.09751).

    seed  of the draws of each call of `generate_answers`: the same rows in the same batches are answered the same. None goes on with
          torch's own state

    Raises ConfigError for values out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"temperature is {self.temperature} and top_p {self.top_p}: expected a temperature above 0 and a top_p above 0 and at "
                "most 1"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a GenerationConfig."""
        return {"do_sample": True, "temperature": float(self.temperature), "top_p": float(self.top_p), "top_k": 0}

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """A block in which torch draws by the seed, and whose draws leave torch's own state as it was."""
        if self.seed is None:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            yield
