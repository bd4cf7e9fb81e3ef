"""Texts to embeddings: by the base model that a bank is on, or by a sentence encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.backbones import load_backbone
from mhr.data.middle import Parts, pick, spans_within
from mhr.data.special_tokens import pad_token
from mhr.data.tokens import pad, tokenise
from mhr.errors import ConfigError, DataError, MhrError
from mhr.layers import AdapterBank
from mhr.layers.disabled import disabled
from mhr.method_settings.contexts import BACKBONE_ENCODER, LONGEST_TEXT, EmbeddingSettings
from mhr.method_settings.generative_adapter import GenerativeSettings
from mhr.objectives.lengths import positions

Made = TypeVar("Made")

TEXTS_AT_ONCE = 16
"""Texts that are read at once."""


class Encoder:
    """The mean over its tokens of a text's last hidden states, as sentence-transformers pools (arXiv 1908.10084).

    Of an encoder-decoder the encoder's, of a decoder its own. A bank on the model is off while it reads, so that embeddings do
    not depend on what was trained.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer

    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings [N, C] of texts, float32 (float64 of a float64 model) on the model's device."""
        return torch.cat(
            self._read(texts, lambda states, kept: (states * kept[..., None]).sum(1) / kept.sum(1, keepdim=True))
        )

    def states(self, texts: Sequence[str], most: int) -> Tensor:
        """The last hidden states [N, L, C] of the last L tokens of each text, at most so many, with zeros behind shorter ones; as `embed`."""

        def last(states: Tensor, kept: Tensor) -> list[Tensor]:
            return [own[there.bool()][-most:] for own, there in zip(states, kept, strict=True)]

        return pad_sequence([own for part in self._read(texts, last) for own in part], batch_first=True)

    @torch.no_grad()
    def _read(self, texts: Sequence[str], made: Callable[[Tensor, Tensor], Made]) -> list[Made]:
        """What is made of the hidden states [B, L, C] of some texts after the other, and of 1 [B, L] where there is a token, otherwise 0."""
        model = self.model
        training = model.training
        model.eval()
        try:
            with disabled(model) if isinstance(getattr(model, "mhr", None), AdapterBank) else nullcontext():
                return [made(*self._states(texts[i : i + TEXTS_AT_ONCE])) for i in range(0, len(texts), TEXTS_AT_ONCE)]
        finally:
            model.train(training)

    def _states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        longest = self._longest()
        whole = tokenise(self.tokenizer, text=list(texts))["input_ids"]
        rows = [pick(row, spans_within(len(row), Parts(0, (0,)), longest) or ()) for row in whole]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise DataError(f"text {text!r:.60} has no tokens, so that it has no embedding")
        ids, mask = pad(rows, pad_token(self.tokenizer))
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        inner: Any = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model.base_model
        states = inner(input_ids=ids, attention_mask=mask)[0]
        states = states if states.dtype == torch.float64 else states.float()
        return states, mask.to(states)

    def _longest(self) -> int:
        side = "encoder" if self.model.config.is_encoder_decoder else "decoder"
        found = positions(self.model, self.tokenizer, side)
        return LONGEST_TEXT if found is None else min(found, LONGEST_TEXT)


def encoder_of(settings: EmbeddingSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The encoder that the settings name: the model itself, or another one. Raises ConfigError for one that cannot be loaded, and for one
    that reads fewer tokens of a text than the settings ask for."""
    own = settings.encoder == BACKBONE_ENCODER
    encoder = Encoder(model, tokenizer) if own else _loaded(settings.encoder)
    if isinstance(settings, GenerativeSettings) and settings.tokens > (longest := encoder._longest()):
        raise ConfigError(
            f"router.tokens is {settings.tokens}, but encoder {settings.encoder!r} reads at most {longest} tokens of a text: set "
            f"router.tokens to {longest} or less, or name another encoder in router.encoder"
        )
    return encoder


@lru_cache(maxsize=1)
def _loaded(name: str) -> Encoder:
    try:
        return Encoder(*load_backbone(name))
    except MhrError as fault:
        raise ConfigError(
            f"router.encoder is {name!r}, which cannot be loaded: {fault}; expected a hub id or folder of a sentence encoder, or "
            f"{BACKBONE_ENCODER!r}"
        ) from None
