"""Scores and answers do not depend on the batch, whatever the architecture keeps of what it has read."""

from __future__ import annotations

import pytest

from mhr.adapters import kind_of
from mhr.data import Example
from mhr.evaluation import LoadedModel, generate_answers, rank_choices
from tests.evaluation.architectures import ARCHITECTURES, tiny_generator
from tests.tokenizers import make_word_tokenizer

# One of each kind runs always, all others with the slow tests.
QUICK = (
    "MistralForCausalLM",
    "MambaForCausalLM",
    "RwkvForCausalLM",
    "Lfm2ForCausalLM",
    "ProphetNetForConditionalGeneration",
)
CACHED = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "BloomForCausalLM",
    "GPT2LMHeadModel",
    "BartForConditionalGeneration",
)
EVERY = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ARCHITECTURES]


def ask(name: str) -> LoadedModel:
    model = tiny_generator(name)
    return LoadedModel(model, make_word_tokenizer(), kind_of(model), name)


@pytest.fixture
def examples() -> list[Example]:
    choices = ("w1", "w2 w3", "w4 w5 w6", "w7 w1")
    texts = [" ".join(f"w{(i * 7 + j) % 20}" for j in range(1 + (i * 5) % 12)) for i in range(6)]
    return [Example("t", text, (choices[0],), choices[: 2 + i % 3], str(i)) for i, text in enumerate(texts)]


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_gives_what_single_examples_give(name: str, examples: list[Example]) -> None:
    loaded = ask(name)
    together = rank_choices(loaded, examples, batch_size=6)
    alone = rank_choices(ask(name), examples, batch_size=1)
    for a, b in zip(together, alone, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-4)
    spread = max(r.scores[0] for r in together) - min(r.scores[0] for r in together)
    assert spread > (0.005 if "ProphetNet" in name else 0.02)  # the input is read
    said = generate_answers(loaded, examples, max_new_tokens=8, batch_size=6)
    assert said == generate_answers(ask(name), examples, max_new_tokens=8, batch_size=1)


@pytest.mark.parametrize("name", [n if n in CACHED[:2] else pytest.param(n, marks=pytest.mark.slow) for n in CACHED])
def test_with_and_without_a_shared_cache(name: str, examples: list[Example]) -> None:
    cached, whole = ask(name), ask(name)
    whole.shares_cache = False
    for a, b in zip(rank_choices(cached, examples), rank_choices(whole, examples), strict=True):
        assert a.scores == pytest.approx(b.scores, abs=2e-5)
    assert (cached.shares_cache, whole.shares_cache) == (True, False)
