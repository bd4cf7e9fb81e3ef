"""Packing: several documents (the rows of a decoder's examples) in one row, so that less of a batch is padding.

Positions begin again at each document, and there is no attention mask: transformers then lets no document attend to another.
Each is routed by its own task, and its losses are its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mhr.data.collators import IGNORED, Batch, CausalCollator
from mhr.data.special_tokens import pad_token
from mhr.data.tokens import TokenRow


class PackedCollator(CausalCollator):
    """Decoders: the documents of a batch in few rows of at most max_input_length + max_target_length tokens.

    input_ids, position_ids, labels [R, L], the padding of a row a document without labels; offsets int64 [G + 1], the first of the
    R L tokens of each of the G documents, row after row, and R L (the padding of a row counts as its last document's); task_ids,
    one a document, in that order. The first token of a document has no label, since nothing predicts it.

    one_row  whether there is one row only, of any length, as variable-length attention asks
    """

    def __init__(self, collator: CausalCollator, one_row: bool = False):
        super().__init__(collator.tokenizer, collator.max_input_length, collator.max_target_length, collator.chat)
        self.truncation = collator.truncation
        self.one_row = one_row

    def collate_rows(self, rows: Sequence[TokenRow], tasks: Sequence[str]) -> Batch:
        self.count_rows(rows, tasks)
        lengths = [len(row.ids) for row in rows]
        if self.one_row:
            packed = [list(range(len(rows)))]
        else:
            packed = pack(lengths, max([self.max_input_length + self.max_target_length, *lengths]))
        longest = max(sum(lengths[i] for i in own) for own in packed)
        shape = len(packed), longest
        ids = torch.full(shape, pad_token(self.tokenizer), dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        positions = torch.zeros(shape, dtype=torch.long)
        offsets: list[int] = []
        for r, own in enumerate(packed):
            end = 0
            for i in own:
                start, end = end, end + lengths[i]
                offsets.append(r * longest + start)
                ids[r, start:end] = torch.tensor(rows[i].ids)
                labels[r, start + 1 : end] = torch.tensor(rows[i].labels[1:], dtype=torch.long)
                positions[r, start:end] = torch.arange(lengths[i])
            positions[r, end:] = torch.arange(longest - end)
        return {
            "input_ids": ids,
            "position_ids": positions,
            "labels": labels,
            "offsets": torch.tensor([*offsets, len(packed) * longest]),
            "task_ids": [tasks[i] for own in packed for i in own],
        }


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Documents in as few rows of at most `capacity` tokens as first-fit-decreasing finds, and these as short as it then can:
    the indices of each row's documents, those of a row and the rows by the first index.

    lengths: tokens of each, at most `capacity`.
    """
    best = _first_fit_decreasing(lengths, capacity)
    low, high = max([*lengths, -(-sum(lengths) // len(best))]), capacity
    while low < high:
        middle = (low + high) // 2
        found = _first_fit_decreasing(lengths, middle)
        if len(found) <= len(best):
            best, high = found, middle
        else:
            low = middle + 1
    return sorted(sorted(row) for row in best)


def _first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        r = next((r for r, free in enumerate(room) if free >= lengths[i]), len(rows))
        if r == len(rows):
            rows.append([])
            room.append(capacity)
        rows[r].append(i)
        room[r] -= lengths[i]
    return rows
