"""What a decoder reads at its labels, against what its model computes with them as `labels`."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from mhr.data import Example
from mhr.errors import ConfigError
from mhr.objectives import make_objective
from mhr.objectives.shifting import first_read, shift_right
from tests.architectures import build
from tests.models import tiny_model
from tests.text_tokenizers import make_mbart_tokenizer

BART_LIKE = ["Bart", "Blenderbot", "BlenderbotSmall", "M2M100", "MBart", "Mvp", "Pegasus", "PLBart"]
SIZES = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
         (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip


def model_of(name: str, **config: int) -> PreTrainedModel:
    settings = {
        "vocab_size": 64,
        "d_model": 16,
        **SIZES,
        "max_position_embeddings": 32,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "bos_token_id": 0,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    }
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Config")(**{**settings, **config})
    return getattr(transformers, f"{name}ForConditionalGeneration")(made).eval()


@pytest.mark.parametrize("name", BART_LIKE)
def test_losses_are_those_of_the_model_s_own_labels(name: str) -> None:
    model = model_of(name)
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 2, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "labels": torch.tensor([[10, 11, 12, 2], [13, 14, 2, -100]]),
    }
    objective = make_objective("seq2seq")
    told = objective(model, {**batch, "task_ids": ["a", "b"]})
    torch.testing.assert_close(told.sums.sum() / objective.count(batch), model(**batch).loss, rtol=1e-5, atol=1e-6)


def test_mbart_takes_the_language_of_the_target_to_the_front() -> None:
    tokenizer = make_mbart_tokenizer()
    romanian = tokenizer.convert_tokens_to_ids("ro_RO")
    model = model_of("MBart", vocab_size=len(tokenizer))
    batch = make_objective("seq2seq").collator(tokenizer)([Example("t", "the cat", ("la pisica",))])
    assert batch["labels"][0, 0] == romanian
    assert shift_right(model, batch["labels"])[0, :2].tolist() == [tokenizer.eos_token_id, romanian]
    old = make_mbart_tokenizer(transformers.MBartTokenizer)
    labels = make_objective("seq2seq").collator(old)([Example("t", "the cat", ("la pisica",))])["labels"]
    assert first_read(model, labels[0].tolist()) == labels[0, -1] == old.convert_tokens_to_ids("ro_RO")


def test_a_model_that_cannot_say_how_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="a gpt2 model does not say how its decoder reads labels"):
        shift_right(tiny_model("gpt2"), torch.tensor([[5, 6]]))
    model = model_of("Bart")
    model.config.decoder_start_token_id = None
    lacking = build("seq2seq", "longt5")  # whose configuration has no such entry at all
    for one in (model, lacking):
        with pytest.raises(ConfigError, match="set decoder_start_token_id and pad_token_id in its config.json"):
            shift_right(one, torch.tensor([[5, 6]]))
