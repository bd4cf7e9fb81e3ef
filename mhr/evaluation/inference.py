"""AdaMix at inference (arXiv 2205.12410): its modules averaged, drawn at random, or drawn several times and ensembled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers import LogitsProcessor

from mhr.errors import ConfigError
from mhr.evaluation.loaded import LoadedModel
from mhr.runs.scoring import ScoringConfig


@dataclass(frozen=True, slots=True)
class Inference:
    """How a bank whose modules were drawn at random in training is used.

    how    average   the uniform average of the modules, one adapter (as published, the default)
           sentence  modules drawn for each row that the model reads: an input, or an input with one choice
           token     modules drawn for each token
           ensemble  the mean over `draws` draws like those of "sentence": of an encoder's logits and of a choice's
                     log-likelihood where choices are ranked, of the next token's logits where answers are generated (with
                     beams, of its log-probabilities)
    draws  draws of an ensemble
    seed   of all draws; None is 0

    Raises ConfigError for values out of range.
    """

    how: str = "average"
    draws: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        ScoringConfig(inference=self.how, draws=self.draws, seed=self.seed)

    @property
    def repeats(self) -> int:
        """How often each example is asked."""
        return 1 if self.how != "ensemble" else self.draws or 8

    @contextmanager
    def on(self, loaded: LoadedModel) -> Iterator[None]:
        """The model's bank used so inside the block. Raises ConfigError for a model without modules to draw."""
        bank = loaded.bank
        if self.how == "average":
            yield
        elif bank is None or not bank.draws:
            raise ConfigError(
                f"inference is {self.how!r}, but {loaded.description} has no modules that are drawn at random, as those of "
                "method adamix are: leave inference out"
            )
        else:
            before = bank.inference
            bank.inference = "token" if self.how == "token" else "sentence"
            bank.seed_draws(self.seed or 0, 0, 0)
            try:
                yield
            finally:
                bank.inference = before


class MeanOverDraws(LogitsProcessor):
    """Gives all draws of an example the mean of their scores, so that they say the same token.

    Rows are in the order of examples, draws, beams: scores [B * draws * n_beams, V].
    """

    def __init__(self, draws: int, n_beams: int):
        self.draws = draws
        self.n_beams = n_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        per_draw = scores.view(-1, self.draws, self.n_beams, scores.shape[-1])
        return per_draw.mean(1, keepdim=True).expand_as(per_draw).reshape(scores.shape)
