"""Token rows: special tokens, truncation, and padding."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mhr.data import Example
from mhr.data.tokens import encode, encode_answers, encode_pairs, encode_prompts, encode_targets, pad, token_counts
from mhr.errors import ConfigError, DataError
from tests.text_tokenizers import FAMILIES, make_mbart_tokenizer, make_tokenizer
from tests.tokenizers import make_word_tokenizer

S, END, SEP = 1, 2, 3


def w(*numbers: int) -> list[int]:
    return [5 + n for n in numbers]


def test_an_encoder_decoder_keeps_the_end_token_of_what_is_cut():
    rows = encode(ByT5Tokenizer(), ["ab", "abcdef", ""], 4)
    assert rows.ids == [[100, 101, 1], [100, 101, 102, 1], [1]]
    assert rows.cut == [False, True, False]
    assert rows.types is None


def test_no_texts_have_no_counts():
    tokenizer = make_word_tokenizer()
    assert token_counts(tokenizer, []) == token_counts(tokenizer, [], []) == []
    assert token_counts(tokenizer, ["a"], ["b c"]) == [len(tokenizer("a", "b c")["input_ids"])]


def test_targets_are_in_the_target_language():
    tokenizer = make_mbart_tokenizer()
    rows = encode_targets(tokenizer, ["la pisica", "la la la la"], 4)
    assert [tokenizer.convert_ids_to_tokens(row) for row in rows.ids] == [
        ["ro_RO", "▁la", "▁pisica", "</s>"],
        ["ro_RO", "▁la", "▁la", "</s>"],
    ]
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, ["the"], 9).ids[0]) == ["en_XX", "▁the", "</s>"]


def test_prompts_stay_open_and_lose_their_middle_behind_the_bos(word_tokenizer: PreTrainedTokenizerFast):
    rows = encode_prompts(word_tokenizer, ["w1", "w1 w2 w3", "w1 w2 w3 w4 w5"], 3)
    assert rows.ids == [[S, *w(1)], [S, *w(1, 3)], [S, *w(1, 5)]]
    assert rows.cut == [False, True, True]
    assert encode_prompts(word_tokenizer, ["w1 w2 w3 w4 w5"], 4).ids == [[S, *w(1, 2, 5)]]
    assert encode_prompts(ByT5Tokenizer(), ["ab"], 3).ids == [[100, 101]]


PROMPTS = ["the film was", "is it so?", "Answer: ", "is it so?\n", "Answer:\n\n", "is it so?  ", " yes", "", "no \n "]
ANSWERS = ["yes", "no maybe", "(A)", ", or", "42", "?", "good film"]


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("adds", ["", "bos", "eos", "bos eos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_answer_are_tokens_of_running_text(family: str, adds: str, offsets: bool):
    tokenizer = make_tokenizer(family, adds, offsets)
    prompts, answers = encode_answers(tokenizer, PROMPTS, [ANSWERS] * len(PROMPTS), 99, 99)
    said = iter(answers.ids)
    for text, prompt in zip(PROMPTS, prompts.ids, strict=True):
        for answer in ANSWERS:
            row = next(said)
            parted = "" if not text or text[-1].isspace() else " "
            whole = tokenizer(text + parted + answer, add_special_tokens=False)["input_ids"]
            begins = [1] if "bos" in adds or prompt == [1] else []
            assert prompt + row == [*begins, *whole, 2], (text, answer)
            spoken = tokenizer.decode(row, skip_special_tokens=True).strip()
            assert spoken.replace(" ", "") == answer.replace(" ", "")  # WordPiece parts at punctuation
            if family != "words":
                assert spoken == answer
    assert not any([*prompts.cut, *answers.cut])
    # What generation reads is what training put before the answer.
    assert encode_prompts(tokenizer, PROMPTS, 99).ids == prompts.ids


@pytest.mark.parametrize("adds", ["", "bos", "bos eos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_prompts_keep_the_bos_and_answers_their_end(family: str, adds: str):
    tokenizer = make_tokenizer(family, adds)
    text, answer = "is it so? yes no maybe " * 9, "no maybe " * 9
    (whole,) = encode_prompts(tokenizer, [text], 999).ids
    prompts, answers = encode_answers(tokenizer, [text], [[answer, "no"]], 8, 5)
    begins = [1] if "bos" in adds else []
    room = 8 - len(begins)
    text_only = whole[len(begins) :]
    assert prompts.ids == [[*begins, *text_only[: room - room // 2], *text_only[len(text_only) - room // 2 :]]]
    assert [row[-1] for row in answers.ids] == [2, 2]
    assert (len(answers.ids[0]), prompts.cut, answers.cut[0]) == (5, [True], True)


def test_all_answers_follow_the_same_tokens_where_one_reaches_into_the_prompt():
    model = models.BPE({"a": 0, "b": 1, " ": 2, "a ": 3, "a b": 4, "c": 5, "</s>": 6}, [("a", " "), ("a ", "b")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")
    prompts, answers = encode_answers(tokenizer, ["ca"], [["b", "c"]], 9, 9)
    assert prompts.ids == [[5]]
    assert answers.ids == [[4, 6], [3, 5, 6]]


def test_half_of_a_surrogate_pair_is_refused_in_one_line():
    for tokenizer in (ByT5Tokenizer(), make_tokenizer("bytes")):
        for encoder in (encode, encode_targets, encode_prompts):
            with pytest.raises(DataError, match="holds half of a surrogate pair"):
                encoder(tokenizer, ["good", "bad \ud83d"], 9)


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = make_tokenizer("bytes")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="has no end token, expected an eos_token"):
        encode_answers(tokenizer, ["a"], [["b"]], 9, 9)


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
