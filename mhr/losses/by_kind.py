"""Losses as a sum and a count per example, so that any split of a batch over passes and processes adds up to the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mhr.data.collators import IGNORED, Batch
from mhr.registry import Registry


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a pass predicted at P positions of each of B examples, among C classes.

    logits [B, P, C]; valid, bool [B, P], the positions that have a target; classes, bool [B, 1, C], those that an example has,
    or None where it has them all (logits of the others are minus infinity).
    """

    logits: Tensor
    valid: Tensor
    classes: Tensor | None = None


@dataclass(frozen=True, slots=True)
class ExampleLosses:
    """What a batch of B examples costs: sums [B]; counts [B], what each sum is over; tasks, B names.

    predicted   what the losses were computed from, for a comparison with another pass
    """

    sums: Tensor
    counts: Tensor
    tasks: list[str]
    predicted: Prediction | None = None


class Loss(ABC):
    """A loss of one kind of model, of a batch that the collator of that kind made."""

    @abstractmethod
    def count(self, batch: Batch) -> Tensor | int:
        """Items that the losses of the batch are summed over."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, smoothing: float) -> ExampleLosses:
        """The losses of the batch; `smoothing` is the share of the target's mass that is spread evenly."""


losses: Registry[type[Loss]] = Registry("kind of model")


def token_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """`sum_l (1 - e) * -log p(y_l) + e * mean_v -log p(v)` [B], float32 (float64 for float64), over positions whose label is not IGNORED.

    logits [B, L, V], labels [B, L].
    """
    scores = precise(logits.transpose(1, 2))
    return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing).sum(1)


def choice_losses(scores: Tensor, counts: list[int], labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """`(1 - e) * -log p(y) + e * mean_c -log p(c)` [B], p the softmax over an example's own choices.

    scores [sum of counts], the examples' choices one after the other; labels [B], the right one's position.
    """
    by_example = pad_choices(precise(scores), counts)
    surprise = -F.log_softmax(by_example, dim=1)  # [B, C]
    right = surprise.gather(1, labels[:, None]).squeeze(1)
    if smoothing == 0:
        return right
    every = surprise.masked_fill(by_example.isinf(), 0.0).sum(1) / torch.tensor(counts, device=scores.device)
    return (1 - smoothing) * right + smoothing * every


def pad_choices(scores: Tensor, counts: list[int]) -> Tensor:
    """Scores [sum of counts], the examples' choices one after the other, as [B, C] filled up with minus infinity."""
    return pad_sequence(list(scores.split(counts)), batch_first=True, padding_value=float("-inf"))


@losses.register("seq2seq")
class Seq2SeqLoss(Loss):
    """Cross-entropy of the target's tokens, for encoder-decoders."""

    def count(self, batch: Batch) -> Tensor:
        return batch["labels"].ne(IGNORED).sum()

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float) -> ExampleLosses:
        inputs, labels = _inputs(model, batch)
        # The model's own loss over the whole vocabulary would be computed for nothing, so it gets no labels.
        shifted = _bare(model).prepare_decoder_input_ids_from_labels(labels)
        return _token_losses(model(**inputs, decoder_input_ids=shifted).logits, labels, smoothing, batch)


@losses.register("causal")
class CausalLoss(Loss):
    """Cross-entropy of the target's tokens, for decoders: position l predicts label l + 1."""

    def count(self, batch: Batch) -> Tensor:
        return batch["labels"][:, 1:].ne(IGNORED).sum()

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float) -> ExampleLosses:
        inputs, labels = _inputs(model, batch)
        return _token_losses(model(**inputs).logits[:, :-1], labels[:, 1:], smoothing, batch)


@losses.register("encoder")
class RankingLoss(Loss):
    """Cross-entropy of the right choice among an example's choices, for encoders that score (input, choice) pairs."""

    def count(self, batch: Batch) -> int:
        return len(batch["choice_counts"])

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float) -> ExampleLosses:
        inputs, labels = _inputs(model, batch)
        counts: list[int] = inputs.pop("choice_counts")
        starts = [sum(counts[:i]) for i in range(len(counts))]
        scores = model(**inputs).logits.squeeze(-1)
        sums = choice_losses(scores, counts, labels, smoothing)
        logits = pad_choices(scores, counts)[:, None]
        every = torch.ones_like(labels)
        predicted = Prediction(logits, every[:, None].bool(), classes=~logits.isinf())
        return ExampleLosses(sums, every, [batch["task_ids"][start] for start in starts], predicted)


def _token_losses(logits: Tensor, labels: Tensor, smoothing: float, batch: Batch) -> ExampleLosses:
    valid = labels.ne(IGNORED)
    return ExampleLosses(
        token_losses(logits, labels, smoothing), valid.sum(1), batch["task_ids"], Prediction(logits, valid)
    )


def _inputs(model: nn.Module, batch: Batch) -> tuple[dict[str, Any], Tensor]:
    """What the model is called with, and the labels. Only a model with a bank is told the tasks."""
    inputs = dict(batch)
    if not hasattr(_bare(model), "mhr"):
        del inputs["task_ids"]
    return inputs, inputs.pop("labels")


def _bare(model: nn.Module) -> Any:
    """The model inside the wrapper that distributed training puts around it."""
    return getattr(model, "module", model)


def precise(scores: Tensor) -> Tensor:
    """Scores in float32, or float64 where they are."""
    return scores if scores.dtype == torch.float64 else scores.float()
