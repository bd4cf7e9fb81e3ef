"""What is kept of inputs and targets fits the positions of a model, and each kept length is one that the model takes."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    ByT5Tokenizer,
    LEDConfig,
    LEDForConditionalGeneration,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from mhr.errors import ConfigError
from mhr.objectives.lengths import fit_data, fit_lengths, positions
from mhr.runs.data_settings import DataConfig
from tests.models import tiny_model


def test_decoders_share_their_positions_between_input_and_target() -> None:
    found = fit_lengths(tiny_model("gpt2"), ByT5Tokenizer(), "causal", 256, 20)
    assert (found.input, found.target) == (44, 20)
    assert found.note == "lowered max_input_length from 256 to 44, as the model takes 64 tokens"
    with pytest.raises(ConfigError, match="max_target_length is 64, but tiny takes 64 tokens with the input: use less"):
        fit_lengths(tiny_model("gpt2"), ByT5Tokenizer(), "causal", 256, 64, "tiny")


def test_each_side_of_an_encoder_decoder_has_its_own() -> None:
    found = fit_lengths(tiny_model("bart"), ByT5Tokenizer(), "seq2seq", 256, 128)
    assert (found.input, found.target) == (64, 64)
    assert "max_input_length from 256 to 64 and max_target_length from 128 to 64" in (found.note or "")
    config = LEDConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_encoder_position_embeddings=48, max_decoder_position_embeddings=24,
        attention_window=8,
    )  # fmt: skip
    found = fit_lengths(LEDForConditionalGeneration(config), ByT5Tokenizer(), "seq2seq", 256, 128)
    assert (found.input, found.target) == (48, 24)


def test_models_without_positions_take_any_length() -> None:
    found = fit_lengths(tiny_model("t5"), ByT5Tokenizer(), "seq2seq", 4096, 1024)
    assert (found.input, found.target, found.note) == (4096, 1024, None)


def test_positions_behind_the_padding_are_fewer() -> None:
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=34, pad_token_id=1, num_labels=1,
        )
    )  # fmt: skip
    most = positions(model, ByT5Tokenizer(), "encoder")
    assert most == 32
    model(input_ids=torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, most + 1), 5))


def test_settings_that_fit_stay_as_they_are() -> None:
    data = DataConfig(max_input_length=40, max_target_length=20)
    assert fit_data(tiny_model("gpt2"), ByT5Tokenizer(), "causal", data) == (data, None)
