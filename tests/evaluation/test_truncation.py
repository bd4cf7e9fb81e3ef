"""Targets that are too long are counted in the tokens that a model is trained to say."""

from __future__ import annotations

import pytest

from mhr.data import Example
from mhr.evaluation import LoadedModel
from mhr.evaluation.generation import Generated
from mhr.evaluation.truncation import count_truncated
from tests.models import tiny_model
from tests.text_tokenizers import make_mbart_tokenizer, make_tokenizer


@pytest.mark.parametrize(
    ("name", "kind", "tokenizer"),
    [
        ("llama", "causal", make_tokenizer("llama-2")),  # a space token before every text by itself
        ("gpt2", "causal", make_tokenizer("bytes", "")),
        ("t5", "seq2seq", make_tokenizer("unigram", "eos")),
        ("bart", "seq2seq", make_mbart_tokenizer()),  # the code of the language before a target
    ],
)
def test_as_the_tokens_of_training(name: str, kind: str, tokenizer: object) -> None:
    loaded = LoadedModel(tiny_model(name), tokenizer, kind, name)  # type: ignore[arg-type]
    example = Example("t", "is it so? ", ("no maybe yes", "la la"))
    _, said = loaded.collator(64, 64).encode_answers([example], [example.targets])
    shortest = min(map(len, said.ids))
    for limit, cut in ((shortest, 0), (shortest - 1, 1)):
        found = count_truncated(loaded, [], [], [example], [Generated("", False)], limit)
        assert found["targets"] == cut
        assert found["tasks"] == ({"t": {"inputs": 0, "choices": 0, "targets": 1}} if cut else {})
