"""Encoders that score (input, choice) pairs: cross-entropy of the right choice among an example's choices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from mhr.data import Example
from mhr.data.collators import Batch, RankingCollator
from mhr.data.tokens import token_counts
from mhr.objectives.heads import States
from mhr.objectives.objective import Distributions, Objective, PassLosses, model_inputs, objectives, precise


class ChoiceObjective(Objective):
    """One score for each choice; the softmax goes over an example's own choices."""

    generates = False
    consistency = 1.0

    def count(self, batch: Batch) -> int:
        return len(batch["choice_counts"])

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float = 0.0, *, compared: bool = False) -> PassLosses:
        inputs, labels = model_inputs(model, batch)
        counts: list[int] = inputs.pop("choice_counts")
        scores = self.scores(model, inputs, counts)
        every = torch.ones_like(labels)
        predicted = None
        if compared:
            logits = pad_choices(scores, counts)
            predicted = Distributions(States(logits), every, classes=~logits.isinf())
        sums = choice_losses(scores, counts, labels, smoothing)
        return PassLosses(sums, every, self.owners(batch["task_ids"], counts), predicted)

    @abstractmethod
    def scores(self, model: nn.Module, inputs: Batch, counts: list[int]) -> Tensor:
        """Scores [sum of counts], the examples' choices one after the other; what of `inputs` is not the model's is taken out."""

    def owners(self, task_ids: list[str], counts: list[int]) -> list[str]:
        """The tasks of the examples, from those of the rows."""
        return task_ids


@objectives.register("ranking")
class RankingObjective(ChoiceObjective):
    """Encoders: a row for each pair of an input and a choice, of which the model makes one logit."""

    kind = "encoder"
    collates = RankingCollator

    def scores(self, model: nn.Module, inputs: Batch, counts: list[int]) -> Tensor:
        return model(**inputs).logits.squeeze(-1)

    def owners(self, task_ids: list[str], counts: list[int]) -> list[str]:
        return [task_ids[end - count] for end, count in zip(accumulate(counts), counts, strict=True)]

    def input_lengths(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
        return longest_pairs(tokenizer, examples)


def longest_pairs(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
    """Tokens of each example's input with its longest choice behind it."""
    return token_counts(tokenizer, [e.input for e in examples], [max(e.choices, key=len) for e in examples])


def choice_losses(scores: Tensor, counts: list[int], labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """`class_losses` of scores [sum of counts], the examples' choices one after the other."""
    return class_losses(pad_choices(precise(scores), counts), labels, smoothing)


def class_losses(scores: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """`(1 - e) * -log p(y) + e * mean_c -log p(c)` [B], p the softmax over an example's own classes.

    scores [B, C], minus infinity where an example has fewer classes; labels [B], the right one's position.
    """
    surprise = -scores.log_softmax(1)
    right = surprise.gather(1, labels[:, None]).squeeze(1)
    if smoothing == 0:
        return right
    absent = scores.isinf()
    every = surprise.masked_fill(absent, 0.0).sum(1) / (~absent).sum(1)
    return (1 - smoothing) * right + smoothing * every


def pad_choices(scores: Tensor, counts: list[int]) -> Tensor:
    """Scores [sum of counts], the examples' choices one after the other, as [B, C] filled up with minus infinity."""
    return pad_sequence(list(scores.split(counts)), batch_first=True, padding_value=float("-inf"))
