"""Ranking losses for generators on tasks with answer choices (T-Few, arXiv 2205.05638).

Of an example with right answer y and choices c, len(c) tokens each, and loglik(c_t) = log p(c_t | x, c_<t):

    LM          mean_t -loglik(y_t)
    mc          -log softmax_c(-score(c)) at c = y,   score(c) = sum_t -loglik(c_t) / len(c) ** length_norm
    unlikely    mean over the tokens t of all wrong choices of -log(1 - exp(loglik(c_t)) + 0.01)

    loss = LM + mc_loss * mc + unlikely_loss * unlikely

An example without choices has the LM term alone. Each example counts the same, so that a global batch may be split in any
way; the original takes the means of LM and `unlikely` over the tokens of a batch, which is the same where answers are
equally long. `mhr.evaluation.rank_choices` ranks by -score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mhr.data.choice_collators import CausalChoicesCollator, Seq2SeqChoicesCollator
from mhr.data.collators import IGNORED, Batch
from mhr.layers import AdapterBank
from mhr.layers.together import compute_together
from mhr.objectives.causal import next_labels
from mhr.objectives.heads import States, states_at
from mhr.objectives.objective import Distributions, Objective, PassLosses, objectives, sums_of, token_losses
from mhr.objectives.ranking import choice_losses
from mhr.objectives.shifting import shift_right
from mhr.objectives.wrapping import bare

MARGIN = 1e-2
"""Keeps the unlikelihood of a token that the model is sure of finite."""


def unlikelihood(log_likelihoods: Tensor) -> Tensor:
    """`-log(1 - p + 0.01)` of each token, from log p."""
    return -torch.log(MARGIN - torch.expm1(log_likelihoods))


class ChoicesObjective(Objective):
    """LM, mc and unlikely losses of a batch that a collator of `mhr.data.choice_collators` made, one sum an example."""

    ranks = True

    def count(self, batch: Batch) -> int:
        return len(batch["task_ids"])

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float = 0.0, *, compared: bool = False) -> PassLosses:
        states, labels = self.answers(model, batch)
        gold = batch["gold"]
        sums = self.combine(states, labels, batch, smoothing)
        # As answers are read one after the other, the right ones are in their examples' order.
        predicted = Distributions(_of_rows(states, labels, gold), labels[gold].ne(IGNORED).sum(1)) if compared else None
        return PassLosses(sums, torch.ones_like(gold), batch["task_ids"], predicted)

    @abstractmethod
    def answers(self, model: nn.Module, batch: Batch) -> tuple[States, Tensor]:
        """What predicts the answers' tokens, and these tokens [P, T], IGNORED where there are none."""

    def combine(self, states: States, labels: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The losses [B] of the examples."""
        counts: list[int] = batch["choice_counts"]
        owners, right, gold = batch["owners"], batch["right"], batch["gold"]
        answered = labels.ne(IGNORED)
        told = token_losses(states, labels[answered])
        tokens = told.new_zeros(labels.shape).masked_scatter(answered, told)  # [P, T]
        lengths = answered.sum(1)
        losses = tokens[gold].sum(1)
        if smoothing:
            said = labels[gold]
            smoothed = token_losses(_of_rows(states, labels, gold), said[said.ne(IGNORED)], smoothing)
            losses = sums_of(smoothed, lengths[gold])
        losses = losses / lengths[gold]
        if self.train.mc_loss:
            by_length = -tokens.sum(1) / lengths**self.train.length_norm
            losses = losses + self.train.mc_loss * choice_losses(by_length, counts, right)
        if self.train.unlikely_loss:
            wrong = torch.ones_like(owners, dtype=torch.bool).index_fill(0, gold, False)[:, None] & answered
            # Where nothing is wrong the term is 0 of itself, and so is its gradient.
            pushed = torch.where(wrong, unlikelihood(-tokens), 0.0).sum(1)
            sums = pushed.new_zeros(len(counts)).index_add(0, owners, pushed)
            tokens_pushed = pushed.new_zeros(len(counts)).index_add(0, owners, wrong.sum(1).to(pushed.dtype))
            losses = losses + self.train.unlikely_loss * sums / tokens_pushed.clamp(min=1)
        return losses


@objectives.register("seq2seq-choices")
class Seq2SeqChoices(ChoicesObjective):
    """Encoder-decoders: the encoder reads each input once, and all answers are decoded in one batch on what it wrote."""

    kind = "seq2seq"
    collates = Seq2SeqChoicesCollator

    def answers(self, model: nn.Module, batch: Batch) -> tuple[States, Tensor]:
        inner = bare(model)
        labels, owners, mask = batch["labels"], batch["owners"], batch["attention_mask"]
        routed = _Routing(inner, batch)
        with routed.inputs():
            read = inner.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask, return_dict=True)
        with routed.answers():
            inputs = {
                # In the encoder's own type, which not every decoder takes a tuple for.
                "encoder_outputs": type(read)(last_hidden_state=read.last_hidden_state[owners]),
                "attention_mask": mask[owners],
                "decoder_input_ids": shift_right(inner, labels),
                "use_cache": False,
            }
            return states_at(model, inputs, labels.ne(IGNORED)), labels


@objectives.register("causal-choices")
class CausalChoices(ChoicesObjective):
    """Decoders: every answer in a row of its own behind a copy of the prompt."""

    kind = "causal"
    shares_row = True
    collates = CausalChoicesCollator

    def answers(self, model: nn.Module, batch: Batch) -> tuple[States, Tensor]:
        labels = next_labels(batch["labels"])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with _Routing(bare(model), batch).answers():
            return states_at(model, inputs, labels.ne(IGNORED)), labels


def _of_rows(states: States, labels: Tensor, rows: Tensor) -> States:
    """The states of the answers `rows`, in their order, of those of all answered tokens of labels [P, T]."""
    answered = labels.ne(IGNORED)
    places = torch.zeros_like(labels).masked_scatter(answered, torch.arange(len(states.values), device=labels.device))
    return states.take(places[rows][answered[rows]])


class _Routing:
    """One routing for both halves of a pass: inputs row by row, and answers each as its input (same noise, same draw)."""

    def __init__(self, model: Any, batch: Batch):
        self.model = model
        self.bank: AdapterBank | None = getattr(model, "mhr", None)
        self.owners: Tensor = batch["owners"]
        self.batch = None if self.bank is None else self.bank.for_batch(batch["task_ids"])

    @contextmanager
    def inputs(self) -> Iterator[None]:
        """Route the encoder, called by itself."""
        if self.bank is None or self.batch is None:
            yield
            return
        with self.bank.routing(self.batch):
            # As the model does at its own call: all layers at once.
            compute_together(self.model, self.bank, self.batch)
            yield
            if self.bank.state.shared is not None:
                self.bank.state.shared.finish()

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Route a call of the model with a row for each answer."""
        if self.bank is None or self.batch is None:
            yield
            return
        with self.bank.routing(self.batch.take(self.owners)):
            yield
