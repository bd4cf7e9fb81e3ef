"""Log-likelihoods are those of plain calls of the model, whatever its cache and its padding do."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from mhr.evaluation import LoadedModel
from mhr.evaluation.likelihood import log_likelihoods
from mhr.objectives.shifting import shift_right
from tests.architectures import architectures, build
from tests.tokenizers import make_word_tokenizer

INPUTS = [[1, 5, 6, 7, 8, 9, 11, 2], [1, 9, 2]]
ANSWERS = [[[6, 7, 2], [7, 2]], [[8, 9, 10, 2], [9, 2]]]

# BART's decoder counts positions from the padding, RoBERTa's are not those it is told, FSMT's forgets where it was.
QUICK = [("causal", "llama"), ("causal", "bart"), ("causal", "roberta"), ("seq2seq", "bart"), ("seq2seq", "fsmt")]
PADDING_READ = [("causal", "prophetnet"), ("causal", "cpmant")]  # whose decoders look at padding on the right
EVERY = [found for found in architectures() if found[0] != "classifier" and found not in PADDING_READ]
ALL = [pytest.param(*found, marks=() if found in QUICK else pytest.mark.slow) for found in EVERY]


def plain(model: PreTrainedModel, kind: str, row: list[int], answer: list[int]) -> float:
    labels = torch.tensor([answer])
    if kind == "seq2seq":
        logits = model(
            input_ids=torch.tensor([row]), decoder_input_ids=shift_right(model, labels), use_cache=False
        ).logits
    else:
        logits = model(input_ids=torch.tensor([row + answer]), use_cache=False).logits[:, len(row) - 1 : -1]
    return logits.float().log_softmax(-1).gather(2, labels[..., None]).sum().item()


@torch.no_grad()
@pytest.mark.parametrize(("kind", "model_type"), ALL)
def test_as_plain_calls(kind: str, model_type: str) -> None:
    model = build(kind, model_type)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(3)  # so that what is read shows
    model.config.pad_token_id, model.config.decoder_start_token_id = 0, 2
    loaded = LoadedModel(model, make_word_tokenizer(), kind, model_type)
    found = log_likelihoods(loaded, INPUTS, ANSWERS, ["t", "t"])
    for row, own, values in zip(INPUTS, ANSWERS, found, strict=True):
        assert values == pytest.approx([plain(model, kind, row, answer) for answer in own], abs=2e-3)
    if (kind, model_type) in QUICK:
        assert loaded.shares_cache is ((kind, model_type) in [("causal", "llama"), ("seq2seq", "bart")])
