"""Generation begins and ends with the tokens that answers are trained to begin and end with, whatever the model's own settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration, MBartTokenizer

from mhr.data import Example
from mhr.evaluation import LoadedModel, generate_answers
from mhr.evaluation.ends import special_tokens, until_end
from mhr.objectives import make_objective
from tests.models import tiny_model
from tests.text_tokenizers import make_mbart_tokenizer, make_tokenizer

PAIRS = [("the the the", "la pisica"), ("cat", "pisica")]


def learned(loaded: LoadedModel, pairs: list[tuple[str, str]]) -> list[Example]:
    """The examples of `pairs`, which the model is trained to say by heart."""
    examples = [Example("t", text, (answer,)) for text, answer in pairs]
    objective = make_objective(loaded.kind)
    batch = objective.collator(loaded.tokenizer)(examples)
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    loaded.model.train()
    for _ in range(60):
        optimizer.zero_grad()
        objective(loaded.model, batch).sums.sum().backward()
        optimizer.step()
    loaded.model.eval()
    return examples


@pytest.mark.parametrize("name", ["llama", "bart"])
@pytest.mark.parametrize("own", [None, 7, [7, 8]])
def test_an_answer_ends_where_it_was_trained_to_end(name: str, own: Any) -> None:
    tokenizer = make_tokenizer("bytes", "bos" if name == "llama" else "bos eos")
    model = tiny_model(name, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    loaded = LoadedModel(model, tokenizer, "causal" if name == "llama" else "seq2seq", "tiny")
    examples = learned(loaded, [("is it so", "yes no"), ("the film was", "good")])
    model.generation_config.eos_token_id = own
    told = generate_answers(loaded, examples, max_new_tokens=24)
    assert [answer.text for answer in told] == ["yes no", "good"]
    assert special_tokens(loaded)["eos_token_id"][0] == tokenizer.eos_token_id


@pytest.mark.parametrize("cls", [MBart50Tokenizer, MBartTokenizer])
def test_answers_are_in_the_language_of_the_targets(cls: type[transformers.PreTrainedTokenizerFast]) -> None:
    tokenizer = make_mbart_tokenizer(cls)
    torch.manual_seed(0)
    model = MBartForConditionalGeneration(
        MBartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32, pad_token_id=1,
            bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
            dropout=0.0, init_std=0.2,
        )
    )  # fmt: skip
    loaded = LoadedModel(model, tokenizer, "seq2seq", "tiny mBART")
    english, romanian = (tokenizer.convert_tokens_to_ids(code) for code in ("en_XX", "ro_RO"))
    model.generation_config.forced_bos_token_id = english if cls is MBart50Tokenizer else None
    examples = learned(loaded, PAIRS)
    assert [answer.text for answer in generate_answers(loaded, examples, max_new_tokens=8)] == [a for _, a in PAIRS]
    found = special_tokens(loaded)
    if cls is MBart50Tokenizer:
        assert (found["forced_bos_token_id"], found["decoder_start_token_id"]) == (romanian, tokenizer.eos_token_id)
    else:
        assert (found.get("forced_bos_token_id"), found["decoder_start_token_id"]) == (None, romanian)


def test_what_stands_behind_the_end_is_left_out() -> None:
    assert until_end([5, 6, 7, 8], [7, 9]) == [5, 6]
    assert until_end([5, 6], [7]) == [5, 6]
    assert until_end([7, 5], [7]) == []
