"""Examples -> batches for models with heads: one row an input that is classified or regressed, one for each choice that is ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mhr.data.chat_format import ChatFormat
from mhr.data.collators import Batch, Collator
from mhr.data.example import Example
from mhr.data.labels import number_of
from mhr.data.tokens import TokenRows, encode, encode_pairs, pad
from mhr.errors import DataError
from mhr.task_heads import CLASSIFY, RANK, REGRESS, TaskHeads


@dataclass(frozen=True, slots=True)
class Scored:
    """Where the scores of an example stand among the logits [R, outputs] of R rows: in `rows`, and there in `columns`, one each."""

    head: int
    rows: list[int]
    columns: list[int]


class HeadCollator(Collator):
    """input_ids, attention_mask (and token_type_ids where the tokenizer makes them) [R, L]; of B examples with up to C scores
    `rows`, `columns` int64 [B, C], where in the logits [R, outputs] each score stands, columns -1 where there is none; labels
    int64 [B], the position of the right one; `values` [B], the number to regress, and `regressed` bool [B], whether it is one;
    task_ids, the names of the tasks of the R rows; `owners`, those of the B examples.

    Only inputs are truncated, never choices; `max_input_length` is that of a pair where choices are ranked.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_input_length: int = 512,
        max_target_length: int = 128,
        chat: ChatFormat | None = None,
        *,
        heads: TaskHeads,
    ):
        super().__init__(tokenizer, max_input_length, max_target_length, chat)
        self.heads = heads

    def __call__(self, examples: Sequence[Example]) -> Batch:
        numbers = [self.heads.of(e.task, e.choices) for e in examples]
        examples = [replace(e, choices=e.compared) for e in examples]
        encoded, scored = self.encode(examples, numbers)
        scored = [self._compared(e, s) for e, s in zip(examples, scored, strict=True)]
        owners = [e.task for e in examples]
        tasks = [""] * len(encoded.ids)
        for example, where in zip(examples, scored, strict=True):
            for row in where.rows:
                tasks[row] = example.task
        self.truncation.note("inputs", tasks, encoded.cut)
        batch = self._padded(encoded.ids)
        if encoded.types is not None:
            batch["token_type_ids"] = pad(encoded.types, 0)[0]
        right, values = zip(*(self._answer(e, s) for e, s in zip(examples, scored, strict=True)), strict=True)
        return {
            **batch,
            **places_of(scored),
            "labels": torch.tensor(right),
            "values": torch.tensor(values, dtype=torch.float32),
            "regressed": torch.tensor([self.heads.heads[s.head].kind == REGRESS for s in scored]),
            "task_ids": tasks,
            "owners": owners,
        }

    def encode(
        self, examples: Sequence[Example], numbers: Sequence[int] | None = None
    ) -> tuple[TokenRows, list[Scored]]:
        """The rows of the examples, and where each one's scores will be; `numbers` are those of their heads, by task if None.

        Raises TaskError for a task without a head, DataError for choices that cannot be ranked.
        """
        if numbers is None:
            numbers = [self.heads.of(e.task, e.choices) for e in examples]
        ranked = [self.heads.heads[n].kind == RANK for n in numbers]
        alone = [e for e, pairs in zip(examples, ranked, strict=True) if not pairs]
        offered = [e for e, pairs in zip(examples, ranked, strict=True) if pairs]
        found = encode(self.tokenizer, [e.input for e in alone], self.max_input_length) if alone else _NONE
        if offered:
            found = _joined(found, encode_pairs(self.tokenizer, offered, self.max_input_length))
        scored: list[Scored] = []
        single, pair = 0, len(alone)
        for example, number, pairs in zip(examples, numbers, ranked, strict=True):
            columns = list(self.heads.outputs(number))
            if pairs:
                rows = list(range(pair, pair + len(example.choices)))
                pair += len(rows)
                scored.append(Scored(number, rows, columns * len(rows)))
            else:
                scored.append(Scored(number, [single] * len(columns), columns))
                single += 1
        return found, scored

    def _compared(self, example: Example, scored: Scored) -> Scored:
        """Without the scores of classes that are accepted too: they are not wrong."""
        head, others = self.heads.heads[scored.head], set(example.targets) - {example.targets[0]}
        if head.kind != CLASSIFY or not others:
            return scored
        columns = [-1 if label in others else c for label, c in zip(head.labels, scored.columns, strict=True)]
        return replace(scored, columns=columns)

    def _answer(self, example: Example, scored: Scored) -> tuple[int, float]:
        """The position of the right class or choice, and the number to regress, each 0 where there is none."""
        head, target = self.heads.heads[scored.head], example.targets[0]
        if head.kind == REGRESS:
            value = number_of(target)
            if value is None:
                raise DataError(
                    f"example {example.id!r} of task {example.task!r} has target {target!r:.40}, expected a number, which its head gives"
                )
            return 0, value
        among = head.labels if head.kind == CLASSIFY else example.choices
        if target not in among:
            raise DataError(
                f"example {example.id!r} of task {example.task!r} has target {target!r:.40}, which is none of the classes that its head "
                f"has: {', '.join(map(repr, among[:10]))}"
            )
        return among.index(target), 0.0


_NONE = TokenRows([], [])


def _joined(one: TokenRows, other: TokenRows) -> TokenRows:
    if not one.ids:
        return other
    types = None if one.types is None or other.types is None else one.types + other.types
    return TokenRows(one.ids + other.ids, one.cut + other.cut, types)


def places_of(scored: Sequence[Scored]) -> dict[str, Tensor]:
    """`rows` and `columns` [B, C] of B examples, the columns -1 behind the last score of each."""
    return {
        "rows": pad([s.rows for s in scored], 0)[0],
        "columns": pad([s.columns for s in scored], -1)[0],
    }
