"""Tiny random models that can be asked, with and without a bank, and examples of different lengths for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import mhr
from mhr.data import Example
from mhr.evaluation import LoadedModel
from tests.models import randomise, tiny_model
from tests.tokenizers import make_word_tokenizer

KINDS = {"t5": "seq2seq", "bart": "seq2seq", "llama": "causal", "gpt2": "causal", "bert": "encoder"}
TASKS = ("alpha", "beta", "gamma")

Ask = Callable[..., LoadedModel]


@pytest.fixture
def ask() -> Ask:
    """ask(name, routed=True): the model of that name, with a bank for TASKS whose skills and routing are random."""

    def make(name: str, routed: bool = True, **settings: str) -> LoadedModel:
        model = tiny_model(name)
        if routed:
            randomise(mhr.attach(model, mhr.AdapterConfig(n_heads=4, n_skills=3, rank=2), TASKS), size=1.0)
        return LoadedModel(model, make_word_tokenizer(), KINDS[name], f"the tiny {name}", **settings)

    return make


@pytest.fixture
def examples() -> list[Example]:
    """Nine examples of three tasks, two to four choices of one to three words, inputs of one to nine words."""
    choices = ("w1", "w2 w3", "w4 w5 w6", "w7 w1")
    made = []
    for i in range(9):
        own = choices[: 2 + i % 3]
        text = " ".join(f"w{(i * 7 + j) % 20}" for j in range(1 + (i * 5) % 9))
        made.append(Example(TASKS[i % 3], text, (own[i % len(own)],), own, f"x-{i}"))
    return made
