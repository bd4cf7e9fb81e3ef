"""AdaMix at inference: averages, draws by sentence and token, and ensembles of draws."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import mhr
from mhr.data import Example, Task, TaskCollection
from mhr.errors import ConfigError
from mhr.evaluation import Inference, LoadedModel, evaluate, generate_answers, rank_choices
from mhr.evaluation.inference import MeanOverDraws
from tests.evaluation.conftest import KINDS, TASKS, Ask
from tests.models import randomise

GENERATORS = [name for name, kind in KINDS.items() if kind != "encoder"]
RANDOM = (Inference("sentence"), Inference("token"), Inference("ensemble", 3))


def adamix(ask: Ask, name: str, adapter: str = "lora", alike: bool = False) -> LoadedModel:
    """A tiny model with three modules that are drawn at random; `alike`: all the same."""
    loaded = ask(name, routed=False)
    config = mhr.AdapterConfig(method="adamix", adapter=adapter, n_skills=3, rank=2)
    bank = mhr.attach(loaded.model, config, TASKS)
    randomise(bank, size=1.0)
    if alike:
        with torch.no_grad():
            for p in bank.adapter_parameters():
                p.copy_(p[:, :1].expand_as(p))
    return loaded


def scores(loaded: LoadedModel, examples: list[Example], inference: Inference) -> list[float]:
    with inference.on(loaded):
        ranked = rank_choices(loaded, examples, draws=inference.repeats)
    return [score for r in ranked for score in r.scores]


def texts(loaded: LoadedModel, examples: list[Example], inference: Inference, n_beams: int = 1) -> list[str]:
    with inference.on(loaded):
        answers = generate_answers(loaded, examples, max_new_tokens=6, n_beams=n_beams, draws=inference.repeats)
    return [answer.text for answer in answers]


@pytest.mark.parametrize("adapter", ["lora", "bottleneck"])
@pytest.mark.parametrize("name", KINDS)
def test_modules_that_are_all_alike_are_as_their_average(
    ask: Ask, examples: list[Example], name: str, adapter: str
) -> None:
    loaded = adamix(ask, name, adapter, alike=True)
    average = scores(loaded, examples, Inference())
    for inference in RANDOM:
        assert scores(loaded, examples, inference) == pytest.approx(average, abs=2e-5)
        if name in GENERATORS:
            for n_beams in (1, 2):
                assert texts(loaded, examples, inference, n_beams) == texts(loaded, examples, Inference(), n_beams)


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_draws_follow_their_seed_and_leave_the_bank_at_the_average(
    ask: Ask, examples: list[Example], name: str
) -> None:
    loaded = adamix(ask, name)
    average = scores(loaded, examples, Inference())
    for inference in RANDOM:
        found = scores(loaded, examples, inference)
        assert found == scores(loaded, examples, inference)
        assert found != pytest.approx(average, abs=1e-3)
        assert found != pytest.approx(scores(loaded, examples, dataclasses.replace(inference, seed=1)), abs=1e-3)
        assert scores(loaded, examples, Inference()) == average


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_an_ensemble_is_the_mean_of_draws_that_differ(ask: Ask, examples: list[Example], name: str) -> None:
    loaded = adamix(ask, name)
    with Inference("sentence").on(loaded):
        drawn = [[s for r in rank_choices(loaded, examples) for s in r.scores] for _ in range(3)]
    assert drawn[0] != pytest.approx(drawn[1], abs=1e-3)
    means = [sum(three) / 3 for three in zip(*drawn, strict=True)]
    assert scores(loaded, examples, Inference("ensemble", 3)) == pytest.approx(means, abs=1e-6)
    assert scores(loaded, examples, Inference("ensemble", 1)) == scores(loaded, examples, Inference("sentence"))


@pytest.mark.parametrize("name", ["t5", "llama"])
@torch.no_grad()
def test_all_tokens_of_a_choice_are_scored_by_one_draw(ask: Ask, name: str) -> None:
    loaded = adamix(ask, name)
    example = Example("alpha", "w1 w2 w3", ("w4 w5 w6",), ("w4 w5 w6", "w7"), "x")
    found = scores(loaded, [example], Inference("sentence", seed=5))
    assert loaded.bank is not None
    with Inference("sentence", seed=5).on(loaded):
        one = loaded.bank.for_batch(["alpha"])
    for choice, score in zip(example.choices, found, strict=True):
        words, said = loaded.tokenizer(example.input)["input_ids"], loaded.tokenizer(choice)["input_ids"]
        with loaded.bank.routing(one):
            if name == "t5":
                ids, labels = torch.tensor([words]), torch.tensor([said])
                logits = loaded.model(input_ids=ids, labels=labels).logits[0]
            else:
                said = [*said[1:], loaded.tokenizer.eos_token_id]
                ids = torch.tensor([words + said])
                logits = loaded.model(input_ids=ids).logits[0, len(words) - 1 : -1]
        likelihoods = logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])
        assert score == pytest.approx(float(likelihoods.mean()), abs=2e-5)


@pytest.mark.parametrize("name", ["t5", "llama"])
@torch.no_grad()
def test_an_ensemble_says_what_its_mean_logits_say(ask: Ask, name: str) -> None:
    loaded = adamix(ask, name)
    example = Example("alpha", "w1 w2 w3", ("w4",), (), "x")
    inference = Inference("ensemble", 4, seed=3)
    with inference.on(loaded):
        found = generate_answers(loaded, [example], max_new_tokens=1, min_new_tokens=1, draws=4)[0].text
    ids = torch.tensor([loaded.tokenizer(example.input)["input_ids"]] * 4)
    start = {"decoder_input_ids": torch.zeros(4, 1, dtype=torch.long)} if name == "t5" else {}
    with inference.on(loaded), loaded.routing(["alpha"] * 4):
        logits = loaded.model(input_ids=ids, **start).logits[:, -1]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    mean = logits.mean(0)
    mean[loaded.model.generation_config.eos_token_id] = -torch.inf  # one token at least is asked for
    assert found == loaded.tokenizer.decode(mean.argmax(), skip_special_tokens=True)


def test_the_mean_keeps_examples_and_beams_apart() -> None:
    scores = torch.arange(2 * 3 * 2 * 5, dtype=torch.float32).view(12, 5)
    found = MeanOverDraws(draws=3, n_beams=2)(torch.empty(0), scores)
    for example in range(2):
        for beam in range(2):
            rows = [example * 6 + draw * 2 + beam for draw in range(3)]
            for row in rows:
                assert found[row].tolist() == scores[rows].mean(0).tolist()


def test_evaluation_says_how_it_was_done(ask: Ask, examples: list[Example]) -> None:
    own = [e for e in examples if e.task == "alpha"]
    collection = TaskCollection([Task("alpha", own, own, choices=())], "made up")
    loaded = adamix(ask, "bert")
    result = evaluate(loaded, collection, inference=Inference("ensemble"), progress=False)
    assert {k: result.settings[k] for k in ("inference", "draws", "seed")} == {
        "inference": "ensemble",
        "draws": 8,
        "seed": 0,
    }
    assert [s for p in result.predictions for s in p.scores] == scores(loaded, own, Inference("ensemble", 8))
    assert evaluate(loaded, collection, progress=False).settings["inference"] == "average"


def test_what_cannot_be_drawn_is_refused(ask: Ask, examples: list[Example]) -> None:
    for routed in (True, False):
        with (
            pytest.raises(ConfigError, match="the tiny t5 has no modules that are drawn at random"),
            Inference("token").on(ask("t5", routed)),
        ):
            pass
        with Inference().on(ask("t5", routed)):
            pass
    with pytest.raises(
        ConfigError,
        match="inference is 'ensembel', expected one of average, sentence, token, ensemble: did you mean 'ensemble'",
    ):
        Inference("ensembel")
    with pytest.raises(ConfigError, match="draws is 3, but inference is 'average': draws are those of 'ensemble'"):
        Inference("average", 3)
    with pytest.raises(ConfigError, match="draws is 0, expected an integer of at least 1"):
        Inference("ensemble", 0)
