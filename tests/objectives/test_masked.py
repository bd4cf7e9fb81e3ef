"""Words at a mask: loss and gradients against a plain formula in float64, on tiny BERT and RoBERTa."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM

import mhr
from mhr import AdapterConfig
from mhr.adapters import kind_of
from mhr.data import Example, Task, TaskCollection
from mhr.data.masked import MASK, Piece
from mhr.errors import ConfigError, DataError
from mhr.objectives import make_objective
from mhr.objectives.consistency import example_divergences
from mhr.objectives.fit import check_fit
from mhr.objectives.heads import head_of
from mhr.objectives.masked import check_words
from mhr.objectives.usable import usable_tasks
from mhr.runs.data_settings import DataConfig
from tests.models import MASKED, randomise, tiny_model
from tests.text_tokenizers import make_masked_tokenizer, make_tokenizer

WORDS = "a fine film it was great terrible yes no maybe ."
LABELS = {"films": ("great", "terrible"), "follows": ("yes", "no", "maybe")}


def example(task: str, text: str, target: str) -> Example:
    pieces = (Piece(text, "field"), Piece(" it was "), MASK, Piece("."))
    return Example(task, text, (target,), LABELS[task], text, pieces=pieces)


EXAMPLES = [
    example("films", "a fine film", "great"),
    example("follows", "a film a film it was no film", "maybe"),
    example("films", "no film", "terrible"),
    example("follows", "fine", "yes"),
]


def adapted(name: str, **settings: object) -> tuple[torch.nn.Module, object, dict[str, object]]:
    tokenizer = make_masked_tokenizer(name.partition("-")[0], WORDS)
    model = tiny_model(name, vocab_size=len(tokenizer), pad_token_id=0).double()
    mhr.attach(model, AdapterConfig(**{"n_skills": 3, "rank": 2, **settings}), list(LABELS))
    randomise(model.mhr)
    objective = make_objective("masked")
    batch = objective.collator(tokenizer)(EXAMPLES)
    return model, objective, batch


def reference(model: torch.nn.Module, batch: dict, smoothing: float) -> Tensor:
    """The losses from all logits of the model, example by example."""
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}
    logits = model(**inputs, task_ids=batch["task_ids"]).logits
    losses, start = [], 0
    for i, count in enumerate(batch["choice_counts"]):
        words = batch["words"][start : start + count]
        start += count
        scores = logits[i, batch["places"][i], words]
        logs = scores - scores.exp().sum().log()
        losses.append(-(1 - smoothing) * logs[batch["labels"][i]] - smoothing * logs.mean())
    return torch.stack(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", MASKED)
def test_loss_and_all_gradients(name: str, smoothing: float) -> None:
    model, objective, batch = adapted(name)
    expected = reference(model, batch, smoothing)
    expected.sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert len(gradients) > 8
    model.zero_grad()
    found = objective(model, batch, smoothing)
    torch.testing.assert_close(found.sums, expected, rtol=1e-12, atol=1e-12)
    assert found.tasks == [e.task for e in EXAMPLES]
    assert objective.count(batch) == int(found.counts.sum()) == 4
    found.sums.sum().backward()
    for n, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad.abs().max() > 0, n
            torch.testing.assert_close(p.grad, gradients[n], rtol=1e-9, atol=1e-12, msg=n)


@pytest.mark.parametrize("name", MASKED)
def test_the_head_is_frozen_and_applied_at_masks_alone(name: str) -> None:
    model, objective, batch = adapted(name)
    head = head_of(model)
    assert head is not None, "all logits of the model are made"
    assert not any(p.requires_grad for p in head.module.parameters())
    shapes: list[tuple[int, ...]] = []
    hook = head.module.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape[:-1])))
    objective(model, batch)
    hook.remove()
    assert shapes == [(1, 1), (len(EXAMPLES),)]


def test_other_rows_and_padding_change_nothing() -> None:
    model, objective, batch = adapted("bert-masked")
    alone = [objective(model, objective.collator(make_masked_tokenizer("bert", WORDS))([e])).sums[0] for e in EXAMPLES]
    torch.testing.assert_close(objective(model, batch).sums, torch.stack(alone), rtol=1e-12, atol=1e-12)


def test_other_accepted_words_are_neither_right_nor_wrong() -> None:
    model, objective, _ = adapted("bert-masked")
    tokenizer = make_masked_tokenizer("bert", WORDS)
    of_two = example("follows", "a film", "no")
    both = dataclasses.replace(of_two, targets=("no", "yes"))
    one = dataclasses.replace(of_two, choices=("no", "maybe"))
    found, expected = (objective(model, objective.collator(tokenizer)([e])).sums for e in (both, one))
    torch.testing.assert_close(found, expected)


def test_consistency_is_a_divergence_over_the_words() -> None:
    model, objective, batch = adapted("bert-masked", method="adamix", adapter="bottleneck", rank=4)
    model.train()
    passes = []
    for step in range(2):
        model.mhr.seed_draws(0, step, 0)
        passes.append(objective(model, batch, compared=True))
    found = example_divergences(*passes)
    expected = []
    for i, count in enumerate(batch["choice_counts"]):
        p, q = (one.predicted.states.values[i, :count].softmax(0) for one in passes)
        expected.append(0.5 * ((p - q) * (p.log() - q.log())).sum())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-12)
    assert found.min() > 0
    assert objective.consistency == 1.0


ARCHITECTURES = {
    "albert": {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
    },
    "camembert": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64},
    "deberta-v2": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64},
    "electra": {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
    },
    "mobilebert": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
        "intermediate_size": 32,
    },
    "modernbert": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64},
    "mpnet": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64},
    "xlm-roberta": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str) -> None:
    tokenizer = make_masked_tokenizer("bert", WORDS)
    special = {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **special, **ARCHITECTURES[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(config).double().eval()
    assert kind_of(model) == "masked"
    mhr.attach(model, AdapterConfig(n_skills=3, rank=2), list(LABELS))
    randomise(model.mhr)
    head = model.get_output_embeddings()
    assert not any(layer.base is head for layer in model.mhr.layers.values())
    batch = make_objective("masked").collator(tokenizer)(EXAMPLES)
    known = inspect.signature(type(model).forward).parameters
    batch = {key: value for key, value in batch.items() if key != "token_type_ids" or key in known}
    found = make_objective("masked")(model, batch).sums
    torch.testing.assert_close(found, reference(model, batch, 0.0), rtol=1e-6, atol=1e-8)
    found.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_tasks_that_cannot_be_learnt_and_why() -> None:
    tokenizer = make_masked_tokenizer("bert", WORDS)
    plain = Example("plain", "a film", ("great",), ("great", "terrible"))
    tasks = TaskCollection([Task("films", EXAMPLES[:1]), Task("plain", [plain])])
    kept, left_out = usable_tasks(tasks, "masked", tokenizer, DataConfig())
    assert list(kept) == ["films"]
    assert "no {mask} in its input" in left_out["plain"]
    kept, left_out = usable_tasks(tasks, "encoder", tokenizer, DataConfig())
    assert list(kept) == ["plain"]
    assert "only a masked language model answers at" in left_out["films"]
    _, left_out = usable_tasks(
        TaskCollection([Task("films", EXAMPLES[:1]), Task("follows", [EXAMPLES[1]])]),
        "masked",
        tokenizer,
        DataConfig(fit=True, max_input_length=9),
    )
    assert left_out == {"follows": "its longest input has 14 tokens, more than 9"}


def test_words_are_looked_up_before_training() -> None:
    wrong = Example("t", "x", ("very fine",), ("very fine", "no"), pieces=EXAMPLES[0].pieces)
    tokenizer = make_masked_tokenizer("bert", WORDS)
    with pytest.raises(DataError, match="word 'very fine' of task 't'"):
        check_words(make_objective("masked").collator(tokenizer), TaskCollection([Task("t", [EXAMPLES[0], wrong])]))


def test_a_tokenizer_without_a_mask_does_not_fit() -> None:
    tokenizer = make_tokenizer("words")
    with pytest.raises(ConfigError, match="has no mask token"):
        check_fit(tiny_model("bert-masked", vocab_size=len(tokenizer)), tokenizer, "masked")
