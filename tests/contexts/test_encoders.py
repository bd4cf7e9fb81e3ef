"""Embeddings of texts: the mean of hidden states, whatever else is in the batch and on the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mhr
from mhr import AdapterConfig
from mhr.backbones import load_backbone
from mhr.contexts import Encoder, encoder_of
from mhr.errors import ConfigError, DataError
from mhr.method_settings.contexts import ContextSettings
from mhr.method_settings.generative_adapter import GenerativeSettings
from tests.models import randomise

TEXTS = ["reverse it", "sort the letters of the string", "a"]


def states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The last hidden states [1, L, C] of one text, as the model itself tells them."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()(input_ids=ids).last_hidden_state
    return model(input_ids=ids, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "llama", "bert"])
def test_an_embedding_is_the_mean_of_the_last_hidden_states(name: str, backbone: Callable[..., str]) -> None:
    model, tokenizer = load_backbone(backbone(name))
    model.double()
    found = Encoder(model, tokenizer).embed(TEXTS)
    assert found.dtype == torch.float64
    with torch.no_grad():
        for text, embedding in zip(TEXTS, found, strict=True):
            alone = states(model, tokenizer(text, return_tensors="pt")["input_ids"])[0].mean(0)
            torch.testing.assert_close(embedding, alone, rtol=1e-9, atol=1e-9)


def test_a_bank_and_training_change_nothing(backbone: Callable[..., str]) -> None:
    model, tokenizer = load_backbone(backbone("t5", dropout_rate=0.5))
    before = Encoder(model, tokenizer).embed(TEXTS)
    randomise(mhr.attach(model, AdapterConfig(n_heads=4), ["boolq"]))
    model.train()
    assert torch.equal(Encoder(model, tokenizer).embed(TEXTS), before)
    assert model.training
    assert not before.requires_grad


def test_many_texts_are_read_in_parts(backbone: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(*load_backbone(backbone("t5")))
    whole = encoder.embed(TEXTS)
    monkeypatch.setattr("mhr.contexts.encoders.TEXTS_AT_ONCE", 2)
    torch.testing.assert_close(encoder.embed(TEXTS), whole)


@pytest.mark.parametrize(("name", "longest"), [("gpt2", 64), ("t5", 512)])
def test_of_a_text_that_is_too_long_its_beginning_and_its_end_are_read(
    name: str, longest: int, backbone: Callable[..., str]
) -> None:
    """A shot ends in its answer."""
    encoder = Encoder(*load_backbone(backbone(name)))
    texts = [f"{begin}{'a' * 600}{end}" for begin, end in (("x", "x"), ("x", "y"), ("y", "x"))]
    assert encoder.states(texts, 1000).shape[:2] == (3, longest)
    embedded = encoder.embed(texts)
    assert embedded.isfinite().all()
    last = encoder.states(texts, 4)
    for one, other in ((0, 1), (0, 2)):
        assert not torch.allclose(embedded[one], embedded[other], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(last[0], last[1], rtol=1e-3, atol=1e-4)


def test_an_encoder_that_reads_fewer_tokens_than_are_asked_for_is_refused(backbone: Callable[..., str]) -> None:
    model, tokenizer = load_backbone(backbone("gpt2"))  # of 64 positions
    assert encoder_of(GenerativeSettings(tokens=64), model, tokenizer).model is model
    assert encoder_of(ContextSettings(), model, tokenizer).model is model  # the mean is of what is read
    for named in ("backbone", backbone("gpt2")):
        with pytest.raises(
            ConfigError, match=r"router\.tokens is 65, but encoder '.*' reads at most 64 tokens of a text"
        ):
            encoder_of(GenerativeSettings(tokens=65, encoder=named), model, tokenizer)


def test_a_text_without_tokens_has_no_embedding(backbone: Callable[..., str]) -> None:
    model, _ = load_backbone(backbone("gpt2"))
    encoder = Encoder(model, lambda **_: {"input_ids": [[]]})  # type: ignore[arg-type]
    encoder._longest = lambda: 8  # type: ignore[method-assign]
    with pytest.raises(DataError, match="text 'a' has no tokens"):
        encoder.embed(["a"])


def test_the_encoder_is_the_model_or_another(backbone: Callable[..., str]) -> None:
    model, tokenizer = load_backbone(backbone("t5"))
    assert encoder_of(ContextSettings(), model, tokenizer).model is model
    other = encoder_of(ContextSettings(encoder=backbone("bert")), model, tokenizer)
    assert other.model.config.model_type == "bert"
    assert encoder_of(ContextSettings(encoder=backbone("bert")), model, tokenizer) is other  # loaded once
    with pytest.raises(
        ConfigError, match=r"^router\.encoder is '/none', which cannot be loaded: .*expected a hub id or folder"
    ):
        encoder_of(ContextSettings(encoder="/none"), model, tokenizer)
