"""Token rows are those that the collators of training make."""

from __future__ import annotations

import pytest
from torch import Tensor

from mhr.data import Example
from mhr.data.collators import IGNORED, CausalCollator, RankingCollator, Seq2SeqCollator
from mhr.evaluation.texts import encode_answers, encode_inputs, encode_pairs
from tests.evaluation.conftest import Ask

EXAMPLES = [
    Example("t", "w1 w2 w3 w4 w5 w6 w7", ("w8 w9",), ("w8 w9", "w1")),
    Example("t", "w1", ("w2 w3 w4 w5 w6 w7 w8",), ("w2 w3 w4 w5 w6 w7 w8", "w1")),
]


def rows(ids: Tensor, kept: Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, kept, strict=True)]


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_generators(ask: Ask, name: str) -> None:
    loaded = ask(name, routed=False)
    collator = {"t5": Seq2SeqCollator, "llama": CausalCollator}[name](loaded.tokenizer, 5, 4)
    inputs = encode_inputs(loaded, [e.input for e in EXAMPLES], 5)
    answers = encode_answers(loaded, [e.targets[0] for e in EXAMPLES], 4)
    prompts, batch = collator.prompts(EXAMPLES), collator(EXAMPLES)
    assert inputs.ids == rows(prompts["input_ids"], prompts["attention_mask"])
    assert answers.ids == rows(batch["labels"], batch["labels"] != IGNORED)
    assert inputs.cut == [True, False]
    assert answers.cut == [False, True]


@pytest.mark.parametrize("typed", [True, False])
def test_encoders(ask: Ask, typed: bool) -> None:
    loaded = ask("bert", routed=False)
    if typed:
        loaded.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    batch = RankingCollator(loaded.tokenizer, 8)(EXAMPLES[:1])
    pairs = encode_pairs(loaded, [EXAMPLES[0].input] * 2, EXAMPLES[0].choices, 8)
    assert pairs.ids == rows(batch["input_ids"], batch["attention_mask"])
    assert pairs.types == (rows(batch["token_type_ids"], batch["attention_mask"]) if typed else None)
    assert pairs.cut == [True, True]
