"""A model that is ready to be asked: its weights, its tokenizer, what kind of model it is, and how tasks are routed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.backbones import check_precision_of, heads_of, untrained_modules
from mhr.data.chat_format import ChatFormat
from mhr.data.example import Example
from mhr.data.special_tokens import pad_token
from mhr.data.tokens import pad
from mhr.errors import ConfigError, nearest
from mhr.layers import AdapterBank
from mhr.objectives import Objective, make_objective, objective_of
from mhr.objectives.lengths import fit_lengths, positions
from mhr.routing import RoutingBatch
from mhr.task_heads import TaskHeads

AUTOCAST_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtypes of the large products, by the names that training uses; "no" is the dtype of the weights."""


@dataclass
class LoadedModel:
    """What `evaluate` asks.

    model        the transformers model, with a bank (`model.mhr`) or plain
    tokenizer    its tokenizer
    kind         "seq2seq", "causal", "encoder" or "masked"
    description  one line on what was loaded, for people
    task         route every example as this task; None routes each as its own
    trained_with tokens of an input and of a target that it was trained with, where that is known
    chat         how rows become a decoder's text, as it was trained
    length_norm  power of a choice's length that its log-likelihood is divided by, as it was trained
    protocol     how it was chosen in few-shot adaptation: "held-out", or "paper" (on the test examples)
    shares_cache whether answers to one input can be decoded on its cache; None until the first ranking has found out
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: str
    description: str
    task: str | None = None
    trained_with: tuple[int, int] | None = None
    chat: ChatFormat = field(default_factory=ChatFormat)
    length_norm: float = 1.0
    protocol: str | None = None
    shares_cache: bool | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.task is not None:
            if self.bank is None:
                raise ConfigError(f"task is {self.task!r}, but {self.description} routes no tasks: leave task out")
            self.bank.for_batch([self.task])  # an unknown name is refused here

    @property
    def bank(self) -> AdapterBank | None:
        return getattr(self.model, "mhr", None)

    @property
    def routed(self) -> bool:
        """Whether the model has a bank, so that task names decide what it computes."""
        return self.bank is not None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad_id(self) -> int:
        """The token that fills rows up."""
        return pad_token(self.tokenizer)

    @cached_property
    def heads(self) -> TaskHeads | None:
        """What its outputs stand for, where it has heads."""
        return heads_of(self.model)

    def head_for(self, example: Example) -> int | None:
        """The number of the head that answers an example; None where there is none."""
        return None if self.heads is None else self.heads.find(self.task or example.task, example.choices)

    @property
    def objective(self) -> type[Objective]:
        """What holds of its kind of model."""
        return objective_of(self.kind)

    def collator(self, max_input_length: int, max_target_length: int) -> Any:
        """What makes token rows for this model: of inputs, and of answers to them."""
        return make_objective(self.kind, heads=self.heads).collator(
            self.tokenizer, max_input_length, max_target_length, self.chat
        )

    def renders(self, example: Example) -> bool:
        """Whether the model reads an example in the words of a chat template."""
        return self.objective.shares_row and self.chat.renders(example)

    def pad(self, rows: Sequence[Sequence[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Token rows as input_ids [B, L] and attention_mask [B, L], on the model's device."""
        ids, mask = pad(rows, self.pad_id, left=left)
        return ids.to(self.device), mask.to(self.device)

    def lengths(self, max_input_length: int | None = None, max_target_length: int | None = None) -> tuple[int, int]:
        """Tokens of an input and of a target to keep: what is asked for, or as trained, or 512 and 128 (at most half of the
        positions that both share); capped to what the model takes. Raises ConfigError for fewer than 2, or where the target leaves
        no room for an input."""
        usual = self.trained_with or (512, 128)
        if not self.trained_with and self.objective.shares_row:
            shared = positions(self.model, self.tokenizer, "decoder")
            usual = usual if shared is None else (512, min(128, shared // 2))
        kept = usual[0] if max_input_length is None else max_input_length
        target = usual[1] if max_target_length is None else max_target_length
        found = fit_lengths(self.model, self.tokenizer, self.kind, kept, target, self.description)
        return found.input, found.target

    def takes(self, argument: str) -> bool:
        """Whether the model's forward has an argument of this name."""
        return argument in inspect.signature(type(self.model).forward).parameters

    def check_trained(self) -> None:
        """Raise ConfigError where a part of the model was drawn at random, so that its scores would mean nothing."""
        drawn = untrained_modules(self.model)
        if drawn:
            raise ConfigError(
                f"{self.description} does not hold {' and '.join(map(repr, drawn))}, so scores would be those of random weights: "
                "train it first (mhr pretrain), or evaluate a run or adapter that brings them"
            )

    @contextmanager
    def judging(self, precision: str = "no") -> Iterator[None]:
        """The model in evaluation mode, without gradients and under autocast to `precision` inside the block.

        Raises ConfigError for an unknown precision, one that the model cannot have, and a model with parts that were drawn at random.
        """
        self.check_trained()
        if precision not in AUTOCAST_DTYPES:
            raise ConfigError(f"unknown precision {precision!r}: {nearest(precision, AUTOCAST_DTYPES)}")
        check_precision_of(self.model, precision)
        dtype = AUTOCAST_DTYPES[precision]
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                yield
        finally:
            if training:
                self.model.train()

    @contextmanager
    def routing(self, tasks: Sequence[str] | RoutingBatch, unseen: str = "uniform") -> Iterator[RoutingBatch | None]:
        """Route the calls of the model inside the block: one task name per row, or what an earlier block was given.

        A task that the bank does not know is routed uniformly, or refused with unseen="error" (TaskError). Without a bank it
        does nothing.
        """
        if self.bank is None:
            yield None
        else:
            batch = tasks
            if not isinstance(batch, RoutingBatch):
                batch = self.bank.for_batch([self.task or task for task in batch], unseen)
            with self.bank.routing(batch):
                yield batch
