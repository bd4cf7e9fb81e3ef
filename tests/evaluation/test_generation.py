"""Generation: batched as alone, routed by task, within its lengths."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from mhr.data import Example
from mhr.errors import ConfigError, TaskError
from mhr.evaluation import LoadedModel, generate_answers
from tests.evaluation.conftest import KINDS, Ask
from tests.tokenizers import make_word_tokenizer

GENERATORS = [name for name, kind in KINDS.items() if kind != "encoder"]


@pytest.mark.parametrize("n_beams", [1, 3])
@pytest.mark.parametrize("name", GENERATORS)
def test_batched_as_alone(ask: Ask, examples: list[Example], name: str, n_beams: int) -> None:
    loaded = ask(name)
    settings = {"max_new_tokens": 6, "n_beams": n_beams}
    together = generate_answers(loaded, examples, **settings)
    alone = [generate_answers(loaded, [example], **settings)[0] for example in examples]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


@pytest.mark.parametrize("name", GENERATORS)
def test_greedy_takes_the_likeliest_token_each_time(ask: Ask, examples: list[Example], name: str) -> None:
    loaded = ask(name)
    example = examples[4]
    ids = torch.tensor(loaded.tokenizer([example.input])["input_ids"])
    said = torch.tensor([[loaded.model.config.decoder_start_token_id]]) if loaded.kind == "seq2seq" else ids
    start = said.shape[1]
    with torch.no_grad(), loaded.routing([example.task]):
        for _ in range(5):
            inputs = {"input_ids": ids, "decoder_input_ids": said} if loaded.kind == "seq2seq" else {"input_ids": said}
            said = torch.cat([said, loaded.model(**inputs).logits[:, -1:].argmax(-1)], 1)
    expected = loaded.tokenizer.decode(said[0, start:], skip_special_tokens=True).strip()
    found = generate_answers(loaded, [example], max_new_tokens=5, min_new_tokens=5)[0].text
    assert found == expected


@pytest.mark.parametrize("name", GENERATORS)
def test_tasks_decide_the_answer(ask: Ask, examples: list[Example], name: str) -> None:
    loaded = ask(name)
    same = [dataclasses.replace(examples[4], task=task) for task in ("alpha", "beta", "gamma", "unseen")]
    answers = [g.text for g in generate_answers(loaded, same, max_new_tokens=8)]
    assert len(set(answers)) > 1
    with pytest.raises(TaskError, match="unknown task 'unseen'"):
        generate_answers(loaded, same, max_new_tokens=8, unseen="error")


def test_lengths(ask: Ask, examples: list[Example]) -> None:
    loaded = ask("llama")
    loaded.model.generation_config.eos_token_id = list(range(64))  # every token ends the answer
    assert {len(g.text.split()) for g in generate_answers(loaded, examples, max_new_tokens=9)} <= {0, 1}
    lengths = [len(g.text.split()) for g in generate_answers(ask("gpt2"), examples, max_new_tokens=3)]
    assert max(lengths) <= 3


def test_habits_of_the_model_are_overruled(ask: Ask, examples: list[Example]) -> None:
    loaded = ask("t5")
    expected = generate_answers(loaded, examples, max_new_tokens=5)
    loaded.model.generation_config.update(
        do_sample=True, temperature=9.0, repetition_penalty=5.0, no_repeat_ngram_size=1, num_beams=4, max_length=2
    )
    assert generate_answers(loaded, examples, max_new_tokens=5) == expected


def test_inputs_that_are_truncated_are_noted(ask: Ask) -> None:
    made = [Example("alpha", text, ("w3",)) for text in ("w1 w2", " ".join(["w1"] * 30))]
    for name in ("t5", "llama"):
        found = generate_answers(ask(name), made, max_input_length=8, max_new_tokens=4)
        assert [g.cut_input for g in found] == [False, True]


def test_what_cannot_be_is_refused(ask: Ask, examples: list[Example]) -> None:
    with pytest.raises(ConfigError, match="the tiny bert is an encoder and cannot generate"):
        generate_answers(ask("bert"), examples)
    with pytest.raises(ConfigError, match="min_new_tokens 5, max_new_tokens 4, n_beams 1: expected"):
        generate_answers(ask("t5"), examples, min_new_tokens=5, max_new_tokens=4)
    assert generate_answers(ask("t5"), []) == []


@pytest.mark.parametrize("n_beams", [1, 3])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_static_cache_says_the_same(ask: Ask, examples: list[Example], name: str, n_beams: int) -> None:
    loaded = ask(name)
    settings = {"max_new_tokens": 6, "n_beams": n_beams, "batch_size": 4}
    expected = generate_answers(loaded, examples, **settings)
    used: list[str] = []
    prepare = loaded.model._prepare_static_cache
    loaded.model._prepare_static_cache = lambda **kwargs: used.append("static") or prepare(**kwargs)
    assert generate_answers(loaded, examples, cache="static", **settings) == expected
    assert used


def test_a_static_cache_is_refused_where_there_is_none() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1)).eval()
    loaded = LoadedModel(model, make_word_tokenizer(), "causal", "mamba")
    with pytest.raises(ConfigError, match="cache is 'static', but mamba has no cache of fixed size"):
        generate_answers(loaded, [Example("a", "w1", ("w2",))], cache="static")


@pytest.mark.parametrize("name", GENERATORS)
def test_neither_order_nor_batch_size_tells(ask: Ask, examples: list[Example], name: str) -> None:
    loaded = ask(name)
    settings = {"max_new_tokens": 6, "stop": ["w7"]}
    expected = {e.id: g for e, g in zip(examples, generate_answers(loaded, examples, **settings), strict=True)}
    for seed in range(3):
        order = random.Random(seed).sample(examples, len(examples))
        for batch_size in (1, 2, 4, None):
            found = generate_answers(loaded, order, batch_size=batch_size, **settings)
            assert {e.id: g for e, g in zip(order, found, strict=True)} == expected
