"""The contract of an objective. Losses are a sum and a count per example, so that any split of a batch over passes and
processes adds up to the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mhr.data import Example
from mhr.data.chat_format import ChatFormat
from mhr.data.collators import IGNORED, Batch, Collator
from mhr.data.tokens import token_counts
from mhr.layers import AdapterBank
from mhr.objectives.chunks import in_chunks
from mhr.objectives.heads import States, states_at
from mhr.objectives.wrapping import bare
from mhr.registry import Registry
from mhr.runs.train_settings import TrainConfig
from mhr.task_heads import TaskHeads


@dataclass(frozen=True, slots=True)
class Distributions:
    """What a pass predicted at the N positions of B examples that have a target, one example's after the other's, among C classes.

    states    what their logits [N, C] are made of
    lengths   [B], positions of each example
    classes   bool [N, C], those that a position has, or None where it has them all (logits of the others are minus infinity)
    """

    states: States
    lengths: Tensor
    classes: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PassLosses:
    """What one pass over a batch of B examples costs: sums [B]; counts [B], what each sum is over; tasks, B names.

    predicted   what the losses were computed from, where the pass is to be compared with another
    """

    sums: Tensor
    counts: Tensor
    tasks: list[str]
    predicted: Distributions | None = None


class Objective(ABC):
    """What a kind of model is trained on, from examples to losses; `train` says with which terms.

    kind          the kind of model that it is for, "seq2seq", "causal", "encoder" or "masked"
    by_heads      whether it is for models with heads (`TaskHeads`), which are then its `heads`
    ranks         whether the choices of a task are trained on, not its right answers alone
    generates     whether the model answers in words of its own
    shares_row    whether input and target stand in one row, and so share the model's positions
    consistency   the published weight of AdaMix's divergence of two passes: for an example where choices are ranked, for a
                  target token where text is generated
    """

    kind: ClassVar[str]
    by_heads: ClassVar[bool] = False
    ranks: ClassVar[bool] = False
    generates: ClassVar[bool] = True
    shares_row: ClassVar[bool] = False
    consistency: ClassVar[float] = 100.0
    collates: ClassVar[type[Collator]]

    def __init__(self, train: TrainConfig | None = None, heads: TaskHeads | None = None):
        self.train = train or TrainConfig()
        self.heads = heads

    @abstractmethod
    def count(self, batch: Batch) -> Tensor | int:
        """Items that the losses of the batch are summed over."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, smoothing: float = 0.0, *, compared: bool = False) -> PassLosses:
        """The losses of a batch that `collator` made; `smoothing` is the share of the target's mass that is spread evenly,
        `compared` whether to keep what the pass predicted."""

    def collator(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_input_length: int = 512,
        max_target_length: int = 128,
        chat: ChatFormat | None = None,
    ) -> Collator:
        """Examples -> the batch that the losses are of; `chat` says how a decoder's rows become text."""
        return self.collates(tokenizer, max_input_length, max_target_length, chat)

    def compares_outputs(self, example: Example) -> bool:
        """Whether consistency compares a single output of the two passes, by its square, as it is no distribution."""
        return not self.generates and len(example.choices) == 1

    def input_lengths(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
        """Tokens that max_input_length is to hold of each example."""
        return token_counts(tokenizer, [e.input for e in examples])


objectives: Registry[type[Objective]] = Registry("objective")


def make_objective(kind: str, train: TrainConfig | None = None, heads: TaskHeads | None = None) -> Objective:
    """The objective of a kind of model, with the ranking terms that `train` asks for. Encoders without heads rank."""
    fitting = [o for o in objectives.values() if o.kind == kind and o.by_heads == (heads is not None)]
    wanted = train is not None and train.ranks
    return next((o for o in fitting if o.ranks == wanted), fitting[0])(train, heads)


def objective_of(kind: str) -> type[Objective]:
    """What holds of a kind of model, however it is trained."""
    return type(make_objective(kind))


def token_losses(states: States, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """`(1 - e) * -log p(y) + e * mean_v -log p(v)` of each position [N], float32 (float64 for float64); labels [N].

    Logits exist for a run of positions at a time, see `in_chunks`.
    """

    def losses(values: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(precise(states.logits(values)), labels, reduction="none", label_smoothing=smoothing)

    return in_chunks(losses, states.width, states.values, labels)


def sums_of(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums [B] of `values` [N], of which each example has so many as `lengths` [B] says, one's after the other's."""
    return torch.segment_reduce(values, "sum", lengths=lengths, initial=0.0, unsafe=True)


def losses_of_tokens(
    model: nn.Module, inputs: dict[str, Any], labels: Tensor, batch: Batch, smoothing: float, compared: bool
) -> PassLosses:
    """The losses of a batch of a generator, called with `inputs`; labels [B, L] are what it is to predict at each position."""
    valid = labels.ne(IGNORED)
    states = states_at(model, inputs, valid)
    lengths = valid.sum(1)
    if "offsets" in batch:  # of documents, which come one after the other in their rows
        lengths = F.pad(valid.flatten().cumsum(0), (1, 0))[batch["offsets"]].diff()
    sums = sums_of(token_losses(states, labels[valid], smoothing), lengths)
    return PassLosses(sums, lengths, batch["task_ids"], Distributions(states, lengths) if compared else None)


def model_inputs(model: nn.Module, batch: Batch) -> tuple[dict[str, Any], Tensor]:
    """What the model is called with, and the labels, which it does not get: it would compute a loss of its own over the whole
    vocabulary, for nothing. Only a model with a bank gets the tasks, those of packed documents with where they stand."""
    inputs = dict(batch)
    labels, offsets = inputs.pop("labels"), inputs.pop("offsets", None)
    bank: AdapterBank | None = getattr(bare(model), "mhr", None)
    if offsets is not None:
        inputs["use_cache"] = False  # with a cache, transformers does not look for documents
    if bank is None:
        del inputs["task_ids"]
    elif offsets is not None:
        rows, length = labels.shape
        inputs["task_ids"] = bank.for_batch(batch["task_ids"]).packed(offsets, (rows, length))
    return inputs, labels


def precise(scores: Tensor) -> Tensor:
    """Scores in float32, or float64 where they are."""
    return scores if scores.dtype == torch.float64 else scores.float()
