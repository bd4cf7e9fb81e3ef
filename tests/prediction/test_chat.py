"""A chat: its turns in the words of the chat template, answered one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mhr
from mhr.data.chat_format import ChatFormat
from mhr.data.reading import ReadOptions
from mhr.errors import ConfigError, TaskError
from mhr.evaluation import LoadedModel
from mhr.evaluation.sampling import Sampling
from mhr.prediction import Chat, PredictConfig, Predictor
from tests.chat_templates import CHATML, make_chat_tokenizer
from tests.models import randomise, tiny_model
from tests.prediction.conftest import Predict

Talker = Callable[..., Predictor]
CONFIG = PredictConfig(max_new_tokens=6)


@pytest.fixture
def talker() -> Talker:
    def make(own: str | None = CHATML, tasks: tuple[str, ...] = (), **chat: Any) -> Predictor:
        model = tiny_model("llama", vocab_size=400, bos_token_id=1, eos_token_id=2, max_position_embeddings=256)
        if tasks:
            randomise(mhr.attach(model, mhr.AdapterConfig(n_heads=4, n_skills=3, rank=2), tasks), size=1.0)
        loaded = LoadedModel(model, make_chat_tokenizer(own), "causal", "the tiny llama", chat=ChatFormat(**chat))
        return Predictor(loaded, ReadOptions())

    return make


def prompts(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model is going to read, as it is asked."""
    read: list[str] = []
    generate = predictor.model.generate

    def watched(**inputs: Any) -> Any:
        read.append(predictor.tokenizer.decode(inputs["input_ids"][0]))
        return generate(**inputs)

    monkeypatch.setattr(predictor.model, "generate", watched)
    return read


def test_what_was_said_is_rendered_by_the_template(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = talker(system="a b")
    read = prompts(predictor, monkeypatch)
    chat = Chat(predictor, CONFIG)
    first = chat.say("is it so?").text
    second = chat.say("and now?").text
    begin = "<|im_start|>system\na b<|im_end|>\n<|im_start|>user\nis it so?<|im_end|>\n<|im_start|>assistant\n"
    assert read[0] == begin
    assert read[1] == f"{begin}{first}<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n"
    assert [turn["content"] for turn in chat.turns] == ["is it so?", first, "and now?", second]
    chat.reset()
    assert chat.say("is it so?").text == first
    assert read[2] == begin


def test_a_chat_streams_what_it_answers_by_its_task(talker: Talker) -> None:
    predictor = talker(tasks=("one", "two"))
    answers = {}
    for task in ("one", "two"):
        pieces: list[str] = []
        answers[task] = Chat(predictor, PredictConfig(task=task, max_new_tokens=12)).say("is it?", pieces.append).text
        assert "".join(pieces) == answers[task]
    assert answers["one"] != answers["two"]
    with pytest.raises(TaskError, match="unknown task 'oen'.*did you mean 'one'"):
        Chat(predictor, PredictConfig(task="oen"))
    with pytest.raises(TaskError, match="no task is named"):
        Chat(predictor)


def test_a_turn_that_is_interrupted_is_forgotten(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = talker()
    chat = Chat(predictor, CONFIG)
    chat.say("is it?")
    before = list(chat.turns)

    def interrupted(**inputs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predictor.model, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.say("really?")
    assert chat.turns == before


def test_a_long_chat_reads_as_much_as_the_model_has_room_for(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = talker()
    read = prompts(predictor, monkeypatch)
    chat = Chat(predictor, CONFIG)
    for i in range(40):
        answer = chat.say(f"is it {i} or {i + 1}?")
        if answer.truncated:
            break
    assert answer.truncated
    assert i > 4
    length = len(predictor.tokenizer(read[-1], add_special_tokens=False)["input_ids"])
    assert 200 < length <= 250
    assert f"is it {i} or {i + 1}?" in read[-1], "the last question stays"


def test_what_cannot_chat_is_refused(talker: Talker, predictor: Predict) -> None:
    with pytest.raises(ConfigError, match="has no chat template"):
        Chat(talker(None))
    with pytest.raises(ConfigError, match="reads plain text"):
        Chat(talker(template="none"))
    for name, kind in (("t5", "seq2seq"), ("bert", "encoder")):
        with pytest.raises(ConfigError, match=f"is of kind '{kind}', expected a decoder"):
            Chat(predictor(name))
    with pytest.raises(ConfigError, match="leave choices out"):
        Chat(talker(), PredictConfig(choices=["a", "b"]))


def test_a_seed_draws_anew_for_each_turn(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int | None] = []
    seeded = Sampling.seeded

    def watched(self: Sampling) -> Any:
        seeds.append(self.seed)
        return seeded(self)

    monkeypatch.setattr(Sampling, "seeded", watched)
    chat = Chat(talker(), PredictConfig(max_new_tokens=2, temperature=1.0, seed=1))
    for _ in range(3):
        chat.say("a")
    assert seeds[0] == 1
    assert len(set(seeds)) == 3
