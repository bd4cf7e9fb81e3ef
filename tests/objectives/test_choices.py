"""T-Few's losses against their formulas, example by example and choice by choice, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ByT5Tokenizer, PreTrainedModel

import mhr
from mhr.data import Example
from mhr.data.choice_collators import beginnings, scored_answers
from mhr.errors import DataError
from mhr.evaluation import LoadedModel, rank_choices
from mhr.objectives import Objective, make_objective
from mhr.objectives.choices import ChoicesObjective, unlikelihood
from mhr.objectives.ranking import RankingObjective
from mhr.objectives.seq2seq import Seq2SeqObjective
from mhr.runs.train_settings import TrainConfig
from tests.architectures import build
from tests.models import randomise, tiny_model
from tests.tokenizers import make_word_tokenizer

BYTES = 384

EXAMPLES = [
    Example("a", "is it so", ("yes",), ("no", "yes", "perhaps")),
    Example("b", "which", ("of", "ov"), ("if", "of", "ov")),  # two are right, so one wrong choice is left
    Example("a", "say it", ("free text",)),
    Example("b", "now", ("never",), ("never", "ever")),
]
KINDS = [("t5", "seq2seq"), ("bart", "seq2seq"), ("llama", "causal"), ("gpt2", "causal")]


def routed_model(name: str, **config: Any) -> PreTrainedModel:
    model = tiny_model(name, vocab_size=BYTES).double()
    bank = mhr.attach(model, mhr.AdapterConfig(method="mhr", n_heads=2, n_skills=3, rank=2, **config), ["a", "b"])
    randomise(bank)
    return model


def choices_of(kind: str, length_norm: float = 1.0, mc: float = 1.0, unlikely: float = 1.0) -> Objective:
    return make_objective(kind, TrainConfig(length_norm=length_norm, mc_loss=mc, unlikely_loss=unlikely))


def batch_of(kind: str, examples: list[Example] = EXAMPLES) -> dict[str, Any]:
    return choices_of(kind).collator(ByT5Tokenizer(), 32, 16)(examples)


def answer_log_likelihoods(model: PreTrainedModel, kind: str, example: Example, answer: str) -> Tensor:
    """log p of each token of one answer, alone in its batch, with the model's own routing."""
    tokenizer = ByT5Tokenizer()
    ids = torch.tensor([tokenizer(example.input)["input_ids"]])
    if kind == "seq2seq":
        labels = torch.tensor([tokenizer(answer)["input_ids"]])
        logits = model(input_ids=ids, labels=labels, task_ids=[example.task]).logits
    else:
        said = [*tokenizer(" " + answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([said])
        logits = model(input_ids=torch.cat([ids[:, :-1], labels], 1), task_ids=[example.task]).logits
        logits = logits[:, -len(said) - 1 : -1]
    return logits.log_softmax(-1).gather(2, labels[..., None])[0, :, 0]


def reference(model: PreTrainedModel, kind: str, example: Example, weights: tuple[float, float, float]) -> Tensor:
    """The loss of one example as its formula says."""
    length_norm, mc, unlikely = weights
    offered = scored_answers(example)
    right = offered.index(example.targets[0])
    told = [answer_log_likelihoods(model, kind, example, answer) for answer in offered]
    scores = torch.stack([-t.sum() / len(t) ** length_norm for t in told])
    wrong = [t for i, t in enumerate(told) if i != right]
    loss = -told[right].mean() - mc * torch.log_softmax(-scores, 0)[right]
    if wrong:
        loss = loss + unlikely * (-torch.log(1 - torch.cat(wrong).exp() + 0.01)).mean()
    return loss


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.0, 0.7, 0.0), (0.5, 0.0, 2.0)])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_losses_and_gradients_are_those_of_the_formulas(
    name: str, kind: str, weights: tuple[float, float, float]
) -> None:
    model = routed_model(name)
    loss = choices_of(kind, *weights)
    batch = batch_of(kind)
    told = loss(model, batch, 0.0)
    expected = torch.stack([reference(model, kind, example, weights) for example in EXAMPLES])
    torch.testing.assert_close(told.sums, expected, rtol=1e-9, atol=1e-9)
    assert told.tasks == ["a", "b", "a", "b"]
    assert loss.count(batch) == told.counts.sum() == 4
    parameters = dict(model.mhr.named_parameters()) | {
        f"{n}.{k}": p for n, layer in model.mhr.layers.items() for k, p in layer.bank().items()
    }
    found = torch.autograd.grad(told.sums.sum(), list(parameters.values()), retain_graph=True)
    truth = torch.autograd.grad(expected.sum(), list(parameters.values()))
    # T5 computes its norms in float32, whatever its dtype.
    for key, ours, theirs in zip(parameters, found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(("name", "kind"), KINDS[::2])
def test_how_a_batch_is_split_changes_nothing(name: str, kind: str) -> None:
    model, loss = routed_model(name), choices_of(kind)
    whole = loss(model, batch_of(kind), 0.0).sums
    parts = [loss(model, batch_of(kind, [example]), 0.0).sums for example in EXAMPLES]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_the_lowest_score_is_what_evaluation_ranks_first(name: str, kind: str) -> None:
    model = routed_model(name)
    ranked = rank_choices(
        LoadedModel(model, ByT5Tokenizer(), kind, "tiny"), [EXAMPLES[0], EXAMPLES[3]], length_norm=0.5
    )
    for example, found in zip((EXAMPLES[0], EXAMPLES[3]), ranked, strict=True):
        told = [answer_log_likelihoods(model, kind, example, choice) for choice in example.choices]
        expected = [(t.sum() / len(t) ** 0.5).item() for t in told]
        assert found.scores == pytest.approx(expected, rel=1e-5)


def test_the_encoder_reads_each_input_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = routed_model("t5")
    choices_of("seq2seq")(
        model, batch_of("seq2seq"), 0.0
    )  # at its first call a model is asked what it does with its head
    encoder, seen = model.get_encoder(), []
    encoder.register_forward_hook(
        lambda m, args, kwargs, out: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    choices_of("seq2seq")(model, batch_of("seq2seq"), 0.0)
    assert seen == [4]


def test_both_halves_of_a_pass_see_the_same_noise() -> None:
    model = routed_model("t5", noise="per_example").train()
    loss = choices_of("seq2seq")
    drawn = []
    make = model.mhr.for_batch
    model.mhr.for_batch = lambda *args, **kwargs: drawn.append(make(*args, **kwargs)) or drawn[-1]
    loss(model, batch_of("seq2seq"), 0.0)
    assert len(drawn) == 1


@pytest.mark.parametrize(("name", "kind"), [("t5", "seq2seq"), ("llama", "causal")])
def test_gradient_checkpointing_changes_nothing(name: str, kind: str) -> None:
    found = []
    for checkpointed in (False, True):
        model = routed_model(name).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        choices_of(kind)(model, batch_of(kind), 0.0).sums.sum().backward()
        found.append([p.grad for p in [*model.mhr.adapter_parameters(), *model.mhr.router_parameters()]])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "kind"), KINDS[::2])
def test_a_model_without_a_bank_trains_too(name: str, kind: str) -> None:
    model = tiny_model(name, vocab_size=BYTES).requires_grad_(True)
    choices_of(kind)(model, batch_of(kind), 0.1).sums.sum().backward()
    assert all(p.grad is not None for p in model.get_encoder().parameters()) if kind == "seq2seq" else True
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_token_that_is_certain_costs_a_finite_amount() -> None:
    log_p = torch.tensor([0.0, -1e-9, -50.0], dtype=torch.float64)
    torch.testing.assert_close(
        unlikelihood(log_p),
        torch.tensor([-torch.log(torch.tensor(0.01)), 4.60517, 0.0], dtype=torch.float64),
        rtol=1e-3,
        atol=1e-2,
    )


def test_settings_choose_the_loss() -> None:
    ranks = TrainConfig(mc_loss=1.0, length_norm=0.5)
    found = make_objective("seq2seq", ranks)
    assert isinstance(found, ChoicesObjective)
    assert found.train is ranks
    assert isinstance(make_objective("seq2seq", TrainConfig()), Seq2SeqObjective)
    assert isinstance(make_objective("encoder", ranks), RankingObjective)


def test_choices_that_cannot_be_told_apart_are_refused() -> None:
    long = Example("t", "x", ("a" * 20 + "b",), ("a" * 20 + "b", "a" * 20 + "c"), "e1")
    for kind in ("seq2seq", "causal"):
        with pytest.raises(DataError, match=r"example 'e1' of task 't': .* are the same in their first 16 tokens"):
            batch_of(kind, [long])
        with pytest.raises(DataError, match="has an empty choice"):
            batch_of(kind, [Example("t", "x", ("a",), ("a", " "), "e1")])


def test_a_choice_that_begins_another_is_found() -> None:
    assert beginnings(Example("t", "x", ("1",), ("2", "10", "1"))) == ("1", "10")
    assert beginnings(Example("t", "x", ("yes",), ("yes", "no"))) is None
    assert beginnings(Example("t", "x", ("free",))) is None


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["switch_transformers", "nllb-moe", "prophetnet", "led"])
def test_encoders_with_outputs_of_their_own_type(model_type: str) -> None:
    """A batch costs what its examples cost one by one."""
    model = build("seq2seq", model_type)
    model.config.pad_token_id, model.config.decoder_start_token_id = 0, 2
    words = ("w1", "w2 w3", "w4 w5 w6")
    examples = [Example("t", f"w{i} w7 w8", (words[i],), words) for i in range(3)]
    objective = choices_of("seq2seq")
    collate = objective.collator(make_word_tokenizer(), 32, 16)
    alone = [objective(model, collate([example])).sums for example in examples]
    torch.testing.assert_close(objective(model, collate(examples)).sums, torch.cat(alone), rtol=1e-4, atol=1e-4)
