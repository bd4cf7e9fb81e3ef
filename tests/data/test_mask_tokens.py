"""Prompts with a mask, token by token."""

from __future__ import annotations

import pytest

from mhr.data import Example
from mhr.data.mask_tokens import MaskWords, encode_masked, masked_lengths
from mhr.data.masked import MASK, Piece, stripped, text_of_pieces
from mhr.data.templates import given_templates
from mhr.errors import ConfigError, DataError
from tests.text_tokenizers import FAMILIES, make_masked_tokenizer, make_tokenizer

WORDS = "a fine film it was great terrible yes no the end of dull : ( ) . ?"
PROMPT = "{input} It was {mask}."


def example(prompt: str = PROMPT, choices: tuple[str, ...] = ("great", "terrible"), **columns: str) -> Example:
    columns = columns or {"input": "A fine film"}
    template = given_templates(prompt, None).of("t")
    assert template is not None
    pieces = template.render_pieces(columns)
    return Example("t", text_of_pieces(pieces), choices[:1], choices, "row 1", pieces=pieces)


def tokens(tokenizer, *examples: Example, length: int = 64) -> list[list[str]]:
    rows = encode_masked(tokenizer, examples, length)
    for ids, place in zip(rows.ids, rows.places, strict=True):
        assert ids[place] == tokenizer.mask_token_id
        assert len(ids) <= length
    return [tokenizer.convert_ids_to_tokens(row) for row in rows.ids]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", "<s> a fine film it was <mask> . </s>"),
        ("roberta", "<s> A Ġfine Ġfilm Ġ I t Ġwas <mask> . </s>"),
    ],
)
def test_a_prompt_token_by_token(family: str, expected: str) -> None:
    assert tokens(make_masked_tokenizer(family, WORDS), example()) == [expected.split()]


def test_pieces_know_what_is_the_rows_own() -> None:
    assert example().pieces == (Piece("A fine film", "field"), Piece(" It was "), MASK, Piece("."))
    assert example().input == "A fine film It was {mask}."
    assert example("  {mask} : {input}  ").pieces == (MASK, Piece(" : "), Piece("A fine film", "field"))


def test_white_space_around_is_left_out_and_within_kept() -> None:
    assert stripped([Piece("  "), Piece(" a ", "field"), Piece(" b "), MASK, Piece(" \n")]) == (
        Piece("a ", "field"),
        Piece(" b "),
        MASK,
    )


def test_columns_of_a_row_and_nested_ones() -> None:
    columns = {"pair": {"a": "the end", "b": "a film"}, "task": "t"}
    template = given_templates("{pair.a}? {mask}, {pair.b}", None).of("t")
    assert template is not None
    assert template.render_input(columns) == "the end? {mask}, a film"
    assert template.render_pieces(columns)[0] == Piece("the end", "field")


def test_a_word_behind_a_space_is_the_token_with_the_space() -> None:
    tokenizer = make_masked_tokenizer("roberta", WORDS)
    found = MaskWords(tokenizer)(example())
    assert tokenizer.convert_ids_to_tokens(found) == ["Ġgreat", "Ġterrible"]


@pytest.mark.parametrize("prompt", ["{mask} {input}", "{input} ({mask})"])
def test_a_word_at_the_beginning_or_in_brackets_is_the_token_without(prompt: str) -> None:
    tokenizer = make_masked_tokenizer("roberta", f"{WORDS}\ngreat\nterrible\n")
    assert tokenizer.convert_ids_to_tokens(MaskWords(tokenizer)(example(prompt))) == ["great", "terrible"]
    assert tokenizer.convert_ids_to_tokens(MaskWords(tokenizer)(example())) == ["Ġgreat", "Ġterrible"]
    with pytest.raises(DataError, match="choose a word that is one token"):
        MaskWords(make_masked_tokenizer("roberta", WORDS))(example(prompt))  # knows the ones with a space alone


def test_a_word_directly_behind_a_field_is_a_new_word() -> None:
    tokenizer = make_masked_tokenizer("roberta", WORDS)
    assert tokenizer.convert_ids_to_tokens(MaskWords(tokenizer)(example("{input}{mask}")))[0] == "Ġgreat"


def test_words_of_word_pieces_are_in_lower_case() -> None:
    tokenizer = make_masked_tokenizer("bert", WORDS)
    found = MaskWords(tokenizer)(example("({mask}) {input}", ("Great", "terrible")))
    assert tokenizer.convert_ids_to_tokens(found) == ["great", "terrible"]


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("length", [9, 10, 12, 17])
def test_a_long_input_loses_its_end_and_never_the_mask(family: str, length: int, offsets: bool) -> None:
    tokenizer = make_masked_tokenizer(family, WORDS, offsets)
    prompt = "{input} It was {mask}." if family == "bert" else "{input} it was {mask}."
    (row,) = tokens(tokenizer, example(prompt, input="a " + "fine film " * 40), length=length)
    assert "".join(row).replace("Ġ", "").endswith("itwas<mask>.</s>")
    assert row[1] == "a"
    assert len(row) >= length - (2 if offsets else 3)
    assert encode_masked(tokenizer, [example(prompt, input="a " + "fine film " * 40)], length).cut == [True]
    assert encode_masked(tokenizer, [example(prompt)], 64).cut == [False]


def test_of_two_inputs_the_longer_one_is_cut_first() -> None:
    tokenizer = make_masked_tokenizer("bert", WORDS)
    columns = {"one": "the end of a film", "two": "a fine film it was " * 9}
    (row,) = tokens(tokenizer, example("{one}? {mask}, {two}", **columns), length=16)
    assert " ".join(row) == "<s> the end of a film ? <mask> , a fine film it was a </s>"


def test_the_mask_of_the_prompt_is_told_from_one_in_the_text() -> None:
    tokenizer = make_masked_tokenizer("bert", WORDS)
    rows = encode_masked(tokenizer, [example("{input} was {mask}.", input="a <mask> film")], 64)
    assert tokenizer.convert_ids_to_tokens(rows.ids[0]) == ["<s>", "a", "<mask>", "film", "was", "<mask>", ".", "</s>"]
    assert rows.places == [5]
    rows = encode_masked(tokenizer, [example("{mask} {input}", input="a <mask> film")], 64)
    assert rows.places == [1]


def test_lengths_are_those_before_truncation() -> None:
    tokenizer = make_masked_tokenizer("bert", WORDS)
    assert masked_lengths(tokenizer, [example(), example(input="a " * 90)]) == [9, 96]
    assert masked_lengths(tokenizer, []) == []


def test_no_room_for_the_input() -> None:
    tokenizer = make_masked_tokenizer("bert", WORDS)
    with pytest.raises(DataError, match="'row 1' of task 't'.* no room for that in 6 tokens: raise max_input_length"):
        encode_masked(tokenizer, [example()], 6)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (("great", "very fine"), r"word 'very fine' of task 't' is 5 tokens .* choose a word that is one token"),
        (("great", "ßß"), "word 'ßß' of task 't' is unknown to the tokenizer"),
        (("yes", "Yes"), "words 'yes' and 'Yes' of task 't' are the same token 'yes'"),
    ],
)
def test_words_that_cannot_be_said_at_a_mask(choices: tuple[str, ...], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        MaskWords(make_masked_tokenizer("bert", WORDS))(example(choices=choices))


def test_a_tokenizer_without_a_mask() -> None:
    with pytest.raises(ConfigError, match="has no mask token"):
        encode_masked(make_tokenizer("words"), [example()], 64)


def test_an_input_without_a_mask_and_without_choices() -> None:
    tokenizer = make_masked_tokenizer("bert", WORDS)
    with pytest.raises(DataError, match=r"'7' of task 't' has no \{mask\} in its input"):
        encode_masked(tokenizer, [Example("t", "a film", ("great",), ("great", "no"), "7")], 64)
    with pytest.raises(DataError, match="has no choices, .*give --verbalizers"):
        encode_masked(tokenizer, [Example("t", "x", ("great",), (), "7", pieces=(MASK,))], 64)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{input} {mask} or {mask}", r"\{mask\} stands 2 times in input"),
        ("It was {mask}.", r"has no field but \{mask\}"),
    ],
)
def test_prompts_without_meaning(prompt: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        given_templates(prompt, None)


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("llama-2", "unigram")])
def test_a_word_is_the_token_that_it_is_in_running_text(family: str, offsets: bool) -> None:
    tokenizer = make_tokenizer(family, adds="", offsets=offsets)
    for prompt, before in (("{input} was {mask}", "film was "), ("{mask} {input}", "")):
        words = [
            w
            for w in ("good", "no", "the", "is", "yes")
            if len(tokenizer(f"{before}{w}")["input_ids"]) == len(tokenizer(before.strip())["input_ids"]) + 1
        ]
        assert len(words) >= 2, "the tokenizer has no words to try"
        expected = [tokenizer(f"{before}{word}")["input_ids"][-1] for word in words]
        assert MaskWords(tokenizer)(example(prompt, tuple(words))) == expected
