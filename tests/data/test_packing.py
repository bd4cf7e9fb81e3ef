"""First-fit-decreasing, and what a packed batch holds."""

from __future__ import annotations

import random

import pytest
import torch

from mhr.data import Example
from mhr.data.collators import CausalCollator
from mhr.data.packing import PackedCollator, pack
from tests.tokenizers import make_word_tokenizer


@pytest.mark.parametrize("seed", range(5))
def test_every_document_has_a_place_and_no_row_is_too_long(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 20) for _ in range(30)]
    rows = pack(lengths, 24)
    assert sorted(i for row in rows for i in row) == list(range(30))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 24
    # First-fit-decreasing takes at most 11/9 of the rows of the best packing, and 6/9.
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 24) + 2
    assert rows == sorted(sorted(row) for row in rows)


def test_rows_are_as_short_as_their_number_allows() -> None:
    assert pack([5, 5, 2, 2], 100) == [[0, 1, 2, 3]]
    assert pack([6, 6, 2, 2], 11) == [[0, 2], [1, 3]]  # 8 and 8, not 10 and 6
    assert pack([4], 9) == [[0]]


def examples() -> list[Example]:
    return [Example(t, f"{t} w1 w2", ("w3",)) for t in ("w5", "w6")] + [Example("w7", "w7 " * 9, ("w3 w4",))]


def test_a_batch_says_where_its_documents_stand() -> None:
    plain = CausalCollator(make_word_tokenizer(), 16, 4)
    rows = plain.encode_rows(examples())
    batch = PackedCollator(plain)(examples())
    assert "attention_mask" not in batch
    offsets = batch["offsets"].tolist()
    assert offsets[0] == 0
    assert offsets[-1] == batch["input_ids"].numel()
    assert len(offsets) == 4
    for start, task in zip(offsets, batch["task_ids"], strict=False):
        row = rows[("w5", "w6", "w7").index(task)]
        span = slice(start, start + len(row.ids))
        assert batch["input_ids"].flatten()[span].tolist() == row.ids
        assert batch["labels"].flatten()[span].tolist() == [-100, *row.labels[1:]]
        assert batch["position_ids"].flatten()[span].tolist() == list(range(len(row.ids)))
    assert batch["labels"].ne(-100).sum() == sum(label != -100 for row in rows for label in row.labels)


def test_padding_is_a_document_of_its_own_for_attention() -> None:
    batch = PackedCollator(CausalCollator(make_word_tokenizer(), 16, 4))(examples())
    shape = batch["input_ids"].shape
    used = sum(len(row.ids) for row in CausalCollator(make_word_tokenizer(), 16, 4).encode_rows(examples()))
    assert used < shape.numel()
    ends = batch["position_ids"].eq(0).sum()
    assert ends == 3 + sum(row[-1] == 0 or bool(row.eq(0).any()) for row in batch["input_ids"].eq(0).flip(1)[:, :1])


def test_one_row_for_attention_of_variable_length() -> None:
    plain = CausalCollator(make_word_tokenizer(), 16, 4)
    batch = PackedCollator(plain, one_row=True)(examples())
    total = sum(len(row.ids) for row in plain.encode_rows(examples()))
    assert batch["input_ids"].shape == (1, total)
    assert batch["task_ids"] == ["w5", "w6", "w7"]


def test_truncated_texts_are_counted_once() -> None:
    plain = CausalCollator(make_word_tokenizer(), 4, 4)
    PackedCollator(plain)(examples())
    assert plain.truncation.describe()["of"] == 6
    assert plain.truncation.describe()["cut"] > 0
    assert torch.is_tensor(PackedCollator(plain)(examples())["offsets"])
