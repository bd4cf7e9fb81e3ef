"""Models with heads: cross-entropy over an example's classes or choices, squared error of a number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mhr.data import Example
from mhr.data.chat_format import ChatFormat
from mhr.data.collators import Batch, Collator
from mhr.data.head_collator import HeadCollator
from mhr.data.tokens import token_counts
from mhr.objectives.heads import States
from mhr.objectives.objective import Distributions, Objective, PassLosses, model_inputs, objectives, precise
from mhr.objectives.ranking import class_losses, longest_pairs
from mhr.task_heads import RANK, REGRESS


@objectives.register("heads")
class HeadObjective(Objective):
    """The outputs of each example's head: of K classes z [K], of its choices one each, or one number.

    classify, rank   -(1 - e) log p(y) - e mean_c log p(c),   p = softmax(z), e the label smoothing
    regress          (z - y)^2

    Each example counts the same, whatever its head. Where all tasks of a batch have the one head, and without smoothing, its mean
    is the loss that transformers' model of `num_labels` outputs computes.
    """

    kind = "encoder"
    by_heads = True
    generates = False
    consistency = 1.0

    def count(self, batch: Batch) -> int:
        return len(batch["owners"])

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float = 0.0, *, compared: bool = False) -> PassLosses:
        inputs, labels = model_inputs(model, batch)
        rows, columns, values, regressed = (inputs.pop(name) for name in ("rows", "columns", "values", "regressed"))
        owners = inputs.pop("owners")
        scores, there = scores_at(model(**inputs).logits, rows, columns)
        sums = torch.where(
            regressed,
            (scores[:, 0] - values.to(scores)).square(),
            class_losses(scores, labels, smoothing),
        )
        every = torch.ones_like(labels)
        predicted = Distributions(States(scores), every, classes=there) if compared else None
        return PassLosses(sums, every, owners, predicted)

    def collator(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_input_length: int = 512,
        max_target_length: int = 128,
        chat: ChatFormat | None = None,
    ) -> Collator:
        assert self.heads is not None
        return HeadCollator(tokenizer, max_input_length, max_target_length, chat, heads=self.heads)

    def compares_outputs(self, example: Example) -> bool:
        assert self.heads is not None
        head = self.heads.heads[self.heads.of(example.task, example.choices)]
        return head.kind == REGRESS or (head.kind == RANK and len(example.choices) == 1)

    def input_lengths(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
        assert self.heads is not None
        numbers = [self.heads.of(e.task, e.choices) for e in examples]
        counts = token_counts(tokenizer, [e.input for e in examples])
        ranked = [i for i, n in enumerate(numbers) if self.heads.heads[n].kind == RANK]
        for i, count in zip(ranked, longest_pairs(tokenizer, [examples[i] for i in ranked]), strict=True):
            counts[i] = count
        return counts


def scores_at(logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The logits [R, outputs] at `rows`, `columns` [B, C] as [B, C], minus infinity where a column is -1, and where it is not, in
    float32 (float64 for float64)."""
    there = columns.ge(0)
    return precise(logits)[rows, columns.clamp(min=0)].masked_fill(~there, float("-inf")), there
