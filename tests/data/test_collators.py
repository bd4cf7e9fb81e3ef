from __future__ import annotations

import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mhr.data import Example
from mhr.data.collators import IGNORED, CausalCollator, RankingCollator, Seq2SeqCollator
from mhr.errors import ConfigError, DataError

S, END, SEP = 1, 2, 3


def w(*numbers: int) -> list[int]:
    return [5 + n for n in numbers]


EXAMPLES = [
    Example("a", "w0 w1 w2", ("w3", "w10"), ("w4", "w3", "w10")),  # w10 is neither trained on nor wrong
    Example("b", "w5", ("w6 w7",), ("w6 w7", "w8", "w9")),
]


def test_seq2seq_batches():
    collator = Seq2SeqCollator(ByT5Tokenizer())
    examples = [Example("a", "ab", ("c",), ("c", "de")), Example("b", "a", ("bcd",), ("bcd",))]
    batch = collator(examples)
    assert batch["input_ids"].tolist() == [[100, 101, 1], [100, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[102, 1, IGNORED, IGNORED], [101, 102, 103, 1]]
    assert batch["task_ids"] == ["a", "b"]
    assert set(batch) == {"input_ids", "attention_mask", "labels", "task_ids"}
    assert collator.encode_inputs(examples).ids == [[100, 101, 1], [100, 1]]


def test_seq2seq_cuts_and_counts():
    collator = Seq2SeqCollator(ByT5Tokenizer(), max_input_length=4, max_target_length=3)
    batch = collator([Example("a", "abcdefgh", ("abcdef",)), Example("a", "abc", ("ab",))])
    assert batch["input_ids"].tolist() == [[100, 101, 102, 1], [100, 101, 102, 1]]
    assert batch["labels"].tolist() == [[100, 101, 1], [100, 101, 1]]
    assert collator.truncation.describe() == {
        "cut": 2,
        "of": 4,
        "tasks": {"a": {"inputs": {"cut": 1, "of": 2}, "targets": {"cut": 1, "of": 2}}},
    }


def test_causal_batches_learn_the_target_only(word_tokenizer: PreTrainedTokenizerFast):
    batch = CausalCollator(word_tokenizer)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[S, *w(0, 1, 2, 3), END], [S, *w(5, 6, 7), END, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert batch["labels"].tolist() == [
        [IGNORED] * 4 + [*w(3), END],
        [IGNORED] * 2 + [*w(6, 7), END, IGNORED],
    ]
    assert batch["task_ids"] == ["a", "b"]


def test_causal_prompts_end_where_the_target_begins(word_tokenizer: PreTrainedTokenizerFast):
    prompts = CausalCollator(word_tokenizer).encode_inputs(EXAMPLES)
    assert prompts.ids == [[S, *w(0, 1, 2)], [S, *w(5)]]


def test_causal_prompts_stay_open_and_lose_their_middle():
    collator = CausalCollator(ByT5Tokenizer(), max_input_length=3, max_target_length=3)
    assert collator.encode_inputs([Example("a", "ab", ("c",))]).ids == [[100, 101]]
    batch = collator([Example("a", "abcd", ("efg",))])
    assert batch["input_ids"].tolist() == [[100, 101, 103, 35, 104, 1]]
    assert collator.truncation.describe()["tasks"] == {
        "a": {part: {"cut": 1, "of": 1} for part in ("inputs", "targets")}
    }


def test_ranking_batches(word_tokenizer: PreTrainedTokenizerFast):
    batch = RankingCollator(word_tokenizer)(EXAMPLES)
    assert batch["input_ids"].tolist() == [
        [S, *w(0, 1, 2), SEP, *w(4), SEP],
        [S, *w(0, 1, 2), SEP, *w(3), SEP],
        [S, *w(5), SEP, *w(6, 7), SEP, 0],
        [S, *w(5), SEP, *w(8), SEP, 0, 0],
        [S, *w(5), SEP, *w(9), SEP, 0, 0],
    ]
    assert torch.equal(batch["labels"], torch.tensor([1, 0]))
    assert batch["choice_counts"] == [2, 3]
    assert batch["task_ids"] == ["a", "a", "b", "b", "b"]


def test_ranking_cuts_inputs_and_never_choices(word_tokenizer: PreTrainedTokenizerFast):
    collator = RankingCollator(word_tokenizer, max_input_length=6)
    batch = collator(EXAMPLES)
    assert batch["input_ids"].tolist()[0] == [S, *w(0, 1), SEP, *w(4), SEP]
    assert batch["input_ids"].tolist()[2] == [S, *w(5), SEP, *w(6, 7), SEP]
    assert collator.truncation.describe()["tasks"] == {"a": {"inputs": {"cut": 2, "of": 2}}}


def test_a_choice_that_leaves_no_room_is_told(word_tokenizer: PreTrainedTokenizerFast):
    collator = RankingCollator(word_tokenizer, max_input_length=5)
    with pytest.raises(DataError, match="example '' of task 'b': choice 'w6 w7' alone takes 5 tokens"):
        collator(EXAMPLES)


def test_ranking_without_choices_names_the_task(word_tokenizer: PreTrainedTokenizerFast):
    example = Example("free", "w0", ("w1",), id="free-3")
    with pytest.raises(DataError, match="example 'free-3' of task 'free' has no choices to rank"):
        RankingCollator(word_tokenizer)([example])


@pytest.mark.parametrize("name", ["max_input_length", "max_target_length"])
def test_lengths_out_of_range_are_told(word_tokenizer: PreTrainedTokenizerFast, name: str):
    with pytest.raises(ConfigError, match=f"{name} is 1, expected at least 2 tokens"):
        Seq2SeqCollator(word_tokenizer, **{name: 1})


def test_rows_are_what_batches_are_made_of_and_are_counted_when_they_are_collated(
    word_tokenizer: PreTrainedTokenizerFast,
):
    collator = CausalCollator(word_tokenizer, max_input_length=3, max_target_length=2)
    rows = collator.encode_rows(EXAMPLES)
    assert [row.ids for row in rows] == [[S, *w(0, 2, 3), END], [S, *w(5, 6), END]]
    assert [row.labels for row in rows] == [[IGNORED] * 3 + [*w(3), END], [IGNORED] * 2 + [*w(6), END]]
    assert [(row.cut, row.cut_target) for row in rows] == [(True, False), (False, True)]
    assert not collator.truncation.seen
    batch, again = collator.collate_rows(rows, ["a", "b"]), CausalCollator(word_tokenizer, 3, 2)(EXAMPLES)
    assert set(batch) == set(again)
    assert torch.equal(batch["input_ids"], again["input_ids"])
    assert torch.equal(batch["labels"], again["labels"])
    assert collator.truncation.describe()["cut"] == 2
