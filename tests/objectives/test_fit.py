"""A tokenizer and a kind that do not fit a model are refused before anything is trained or scored."""

from __future__ import annotations

import pytest
from transformers import BertConfig, BertLMHeadModel, ByT5Tokenizer

from mhr.errors import ConfigError
from mhr.objectives.fit import check_fit, notes_on
from tests.models import DECODERS, tiny_model
from tests.text_tokenizers import make_tokenizer
from tests.tokenizers import make_word_tokenizer


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"makes tokens up to 258 .* embedding has 64 rows, expected at least 259"):
        check_fit(tiny_model("t5"), ByT5Tokenizer(), "seq2seq")
    check_fit(tiny_model("t5"), make_word_tokenizer(), "seq2seq")


def test_special_tokens_that_no_text_makes_may_lie_beyond_it() -> None:
    tokenizer = make_word_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_fit(model, tokenizer, "causal")
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})  # in every batch
    with pytest.raises(ConfigError, match=r"'<new pad>'.* embedding has 25 rows"):
        check_fit(model, tokenizer, "causal")


def test_generators_need_an_end_token() -> None:
    tokenizer = make_tokenizer("bytes", "")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="has no end token"):
        check_fit(tiny_model("llama", vocab_size=500), tokenizer, "causal")
    check_fit(tiny_model("bert", vocab_size=500), tokenizer, "encoder")


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_see_only_what_stands_before(name: str) -> None:
    check_fit(tiny_model(name), make_word_tokenizer(), "causal")


def test_a_model_that_reads_ahead_is_no_decoder() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertLMHeadModel(BertConfig(vocab_size=64, **sizes)).eval()
    with pytest.raises(ConfigError, match="this bert is no decoder, .* it reads ahead"):
        check_fit(model, make_word_tokenizer(), "causal")
    check_fit(
        BertLMHeadModel(BertConfig(vocab_size=64, is_decoder=True, **sizes)).eval(), make_word_tokenizer(), "causal"
    )


def test_targets_without_an_end_are_noted() -> None:
    (line,) = notes_on(make_tokenizer("bytes", "bos"), "seq2seq")
    assert "ends targets in no end token" in line
    assert (
        notes_on(make_tokenizer("bytes", "eos"), "seq2seq") == notes_on(make_tokenizer("bytes", "bos"), "causal") == []
    )
