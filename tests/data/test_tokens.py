"""Token rows: special tokens, what is cut where it is too long, and padding."""

from __future__ import annotations

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mhr.data import Example
from mhr.data.tokens import encode, encode_answers, encode_pairs, encode_prompts, pad
from mhr.errors import DataError
from tests.tokenizers import make_word_tokenizer

S, END, SEP = 1, 2, 3


def w(*numbers: int) -> list[int]:
    return [5 + n for n in numbers]


def test_an_encoder_decoder_keeps_the_end_token_of_what_is_cut():
    rows = encode(ByT5Tokenizer(), ["ab", "abcdef", ""], 4)
    assert rows.ids == [[100, 101, 1], [100, 101, 102, 1], [1]]
    assert rows.cut == [False, True, False]
    assert rows.types is None


def test_prompts_stay_open_and_lose_their_beginning(word_tokenizer: PreTrainedTokenizerFast):
    rows = encode_prompts(word_tokenizer, ["w1", "w1 w2 w3"], 3)
    assert rows.ids == [[S, *w(1)], w(1, 2, 3)]
    assert rows.cut == [False, True]
    assert encode_prompts(ByT5Tokenizer(), ["ab"], 3).ids == [[100, 101]]


def test_answers_begin_with_a_space_and_keep_the_end_token(word_tokenizer: PreTrainedTokenizerFast):
    rows = encode_answers(word_tokenizer, ["w1", "w1 w2 w3"], 3)
    assert rows.ids == [[*w(1), END], [*w(1, 2), END]]
    assert rows.cut == [False, True]
    assert encode_answers(ByT5Tokenizer(), ["a"], 3).ids == [[35, 100, 1]]


@pytest.mark.parametrize("typed", [True, False])
def test_pairs_lose_the_end_of_their_input(typed: bool):
    tokenizer = make_word_tokenizer()
    if typed:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    examples = [Example("a", "w1 w2 w3 w4", ("w5",), ("w5", "w6 w7")), Example("b", "w8", ("w9",), ("w9",))]
    rows = encode_pairs(tokenizer, examples, 6)
    assert rows.ids == [
        [S, *w(1, 2), SEP, *w(5), SEP],
        [S, *w(1), SEP, *w(6, 7), SEP],
        [S, *w(8), SEP, *w(9), SEP],
    ]
    assert rows.cut == [True, True, False]
    assert rows.types == ([[0] * 4 + [1] * 2, [0] * 3 + [1] * 3, [0] * 3 + [1] * 2] if typed else None)


def test_choices_that_cannot_be_ranked(word_tokenizer: PreTrainedTokenizerFast):
    def refused(length: int = 9, *choices: str) -> str:
        with pytest.raises(DataError) as raised:
            encode_pairs(word_tokenizer, [Example("t", "w1 w2", ("w3",), choices, "x")], length)
        return str(raised.value)

    assert refused().startswith("example 'x' of task 't' has no choices to rank")
    assert "example 'x' of task 't' has an empty choice among ['w3', ' ']" in refused(9, "w3", " ")
    assert "choice 'w4 w5' alone takes 5 tokens, which leaves no room for the input in 5" in refused(5, "w3", "w4 w5")


def test_padding():
    ids, mask = pad([[5, 6], [7], []], 9)
    assert ids.tolist() == [[5, 6], [7, 9], [9, 9]]
    assert mask.tolist() == [[1, 1], [1, 0], [0, 0]]
    ids, mask = pad([[5, 6], [7]], 9, left=True)
    assert ids.tolist() == [[5, 6], [9, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]
