"""Answers as they come, and answers that are drawn."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mhr.data import Example
from mhr.data.chat_format import ChatFormat
from mhr.errors import ConfigError
from mhr.evaluation import LoadedModel, generate_answers
from mhr.evaluation.sampling import Sampling
from mhr.evaluation.streaming import AnswerStream
from tests.chat_templates import REWRITES, make_chat_tokenizer
from tests.evaluation.conftest import KINDS, Ask
from tests.models import tiny_model

GENERATORS = [name for name, kind in KINDS.items() if kind != "encoder"]


def stream(loaded: LoadedModel, example: Example, **settings: object) -> tuple[list[str], str]:
    pieces: list[str] = []
    (answer,) = generate_answers(loaded, [example], stream=pieces.append, **settings)  # type: ignore[arg-type]
    return pieces, answer.text


@pytest.mark.parametrize("name", GENERATORS)
def test_a_stream_is_the_answer_piece_by_piece(ask: Ask, examples: list[Example], name: str) -> None:
    loaded = ask(name)
    most = 0
    for example in examples:
        pieces, whole = stream(loaded, example, max_new_tokens=8)
        most = max(most, len(pieces))
        (alone,) = generate_answers(loaded, [example], max_new_tokens=8)
        assert "".join(pieces) == whole == alone.text
    assert most > 1


@pytest.mark.parametrize(("begin", "end"), [(4, 6), (3, 5), (5, 12), (-3, None), (0, 1)])
def test_a_stream_says_nothing_of_a_stop_string(ask: Ask, examples: list[Example], begin: int, end: int | None) -> None:
    """The stop string is a part of the answer: of a word, over several words, its end, its beginning."""
    loaded = ask("llama")
    whole_answers = generate_answers(loaded, examples, max_new_tokens=16)
    long = [(e, free) for e, free in zip(examples, whole_answers, strict=True) if len(free.text) >= 12]
    assert long
    for example, free in long[:2]:
        stop = [free.text[begin:end]]
        pieces, whole = stream(loaded, example, max_new_tokens=16, stop=stop)
        assert "".join(pieces) == whole == free.text[: free.text.index(stop[0])].strip()


def test_bytes_of_a_character_and_the_lead_of_a_template_are_held_back() -> None:
    """Random tokens of a byte-level vocabulary, behind a template that puts an empty reasoning before every answer."""
    model = tiny_model("llama", vocab_size=400, bos_token_id=1, eos_token_id=2, max_position_embeddings=256)
    loaded = LoadedModel(model, make_chat_tokenizer(REWRITES), "causal", "tiny", chat=ChatFormat("auto"))
    for i in range(4):
        example = Example("", f"is it {i}?", ("",))
        pieces, whole = stream(loaded, example, max_new_tokens=24)
        assert "".join(pieces) == whole
        assert whole


def test_half_of_a_lead_is_not_said() -> None:
    texts = iter(["<thi", "", "yes", "yes no"])
    said: list[str] = []
    streamed = AnswerStream(lambda row: next(texts), said.append, lead="<think></think>")
    streamed.put(torch.tensor([[1, 2]]))
    for token in range(3):
        streamed.put(torch.tensor([token]))
    streamed.end()
    assert said == ["yes", " no"]


def test_words_that_change_are_said_once_more() -> None:
    """A tokenizer that cleans up may join a word to what follows it."""
    texts = iter(["do ' t", "don't"])
    said: list[str] = []
    streamed = AnswerStream(lambda row: next(texts), said.append)
    streamed.put(torch.tensor([[1]]))
    streamed.put(torch.tensor([2]))
    streamed.end()
    assert said == ["do ' t", "\ndon't"]


def test_draws_are_those_of_the_seed(ask: Ask, examples: list[Example]) -> None:
    loaded = ask("llama")
    state = torch.get_rng_state()

    def answers(sampling: Sampling | None) -> list[str]:
        return [g.text for g in generate_answers(loaded, examples, max_new_tokens=8, sampling=sampling)]

    assert answers(Sampling(seed=1)) == answers(Sampling(seed=1)) != answers(Sampling(seed=2))
    assert torch.equal(torch.get_rng_state(), state)
    greedy = answers(None)
    assert answers(Sampling(temperature=1e-6, seed=1)) == greedy
    assert answers(Sampling(top_p=1e-6, seed=1)) == greedy != answers(Sampling(seed=1))


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_is_checked(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected a temperature above 0 and a top_p"):
        Sampling(**values)


def test_sampling_and_streams_are_of_one_beam_and_a_stream_of_one_row(ask: Ask, examples: list[Example]) -> None:
    loaded = ask("llama")
    two = [dataclasses.replace(examples[0], id=str(i)) for i in range(2)]
    for settings in ({"stream": print}, {"sampling": Sampling(), "n_beams": 2}, {"sampling": Sampling(), "draws": 2}):
        with pytest.raises(ConfigError, match="of one beam and one draw"):
            generate_answers(loaded, two, max_new_tokens=4, **settings)
