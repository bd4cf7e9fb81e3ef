"""The losses of models with heads against transformers' own and against plain sums in float64, with every gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhr import AdapterConfig, attach
from mhr.backbones import set_heads
from mhr.data import Example
from mhr.data.collators import Batch
from mhr.errors import DataError, TaskError
from mhr.objectives import make_objective
from mhr.objectives.consistency import example_divergences
from mhr.task_heads import TaskHead, TaskHeads, join_heads
from tests.models import randomise, tiny_model
from tests.tokenizers import make_word_tokenizer

HEADS = join_heads(
    {
        "two": TaskHead("classify", ("w1", "w2")),
        "three": TaskHead("classify", ("w3", "w4", "w5")),
        "number": TaskHead("regress"),
        "pick": TaskHead("rank"),
    }
)
EXAMPLES = {
    "two": [Example("two", "w1 w7", ("w2",), ("w2", "w1")), Example("two", "w3", ("w1",), ("w1", "w2"))],
    "three": [Example("three", "w9 w2 w4", ("w5",)), Example("three", "w2 w4 w6 w8", ("w3",))],
    "number": [Example("number", "w5 w2", ("-0.25",)), Example("number", "w6", ("3",))],
    "pick": [
        Example("pick", "w1 w2 w3", ("w9",), ("w8", "w9", "w10 w11")),
        Example("pick", "w4", ("w7",), ("w6", "w7")),
    ],
}


def model_of(heads: TaskHeads, seed: int = 0, **config: Any) -> Any:
    """A model with these heads in float64."""
    model = tiny_model("bert", num_labels=5, **config)
    torch.manual_seed(seed)
    set_heads(model, heads)
    return model.double()


def batch_of(heads: TaskHeads, examples: Iterable[Example]) -> Batch:
    return make_objective("encoder", heads=heads).collator(make_word_tokenizer(), 16)(list(examples))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_other_accepted_answers_are_neither_right_nor_wrong(smoothing: float) -> None:
    model = model_of(HEADS)
    head = make_objective("encoder", heads=HEADS)

    def losses(objective: Any, *examples: Example) -> Tensor:
        return objective(model, objective.collator(make_word_tokenizer(), 16)(list(examples)), smoothing).sums

    many = Example("three", "w9 w2 w4", ("w5", "w3")), Example("pick", "w1 w2", ("w9", "w8"), ("w8", "w9", "w10 w11"))
    without = Example("pick", "w1 w2", ("w9",), ("w9", "w10 w11"))
    found = losses(head, *many)
    batch = batch_of(HEADS, [EXAMPLES["three"][0]])
    logits = model(
        **{key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
    ).logits
    own = logits[0, list(HEADS.outputs(HEADS.of("three")))]
    torch.testing.assert_close(found[0], F.cross_entropy(own[1:], torch.tensor(1), label_smoothing=smoothing))
    torch.testing.assert_close(found[1], losses(head, without)[0])
    ranking = make_objective("encoder")
    model = tiny_model("bert").double()
    torch.testing.assert_close(losses(ranking, many[1]), losses(ranking, without))


@pytest.mark.parametrize("task", ["two", "three", "number"])
def test_one_task_is_the_model_of_transformers(task: str) -> None:
    heads = HEADS.alone(task)
    model = model_of(heads)
    batch = batch_of(heads, EXAMPLES[task])
    losses = make_objective("encoder", heads=heads)(model, batch)
    kinds = {"number": "regression"}
    assert model.config.problem_type == kinds.get(task, "single_label_classification")
    labels = batch["values"].double() if task == "number" else batch["labels"]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
    theirs = model(**inputs, labels=labels).loss
    ours = losses.sums.sum() / losses.counts.sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert_same(gradients(model, ours), gradients(model, model(**inputs, labels=labels).loss))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_batch_is_a_plain_sum_over_its_examples(smoothing: float) -> None:
    model = model_of(HEADS)
    examples = [e for pair in zip(*EXAMPLES.values(), strict=True) for e in pair]
    batch = batch_of(HEADS, examples)
    losses = make_objective("encoder", heads=HEADS)(model, batch, smoothing)
    assert losses.tasks == [e.task for e in examples]

    tokenizer = make_word_tokenizer()
    expected = []
    for example in examples:
        columns = list(HEADS.outputs(HEADS.tasks[example.task]))
        pairs = (
            [(example.input, choice) for choice in example.choices] if example.task == "pick" else [(example.input,)]
        )
        logits = torch.cat([model(**_tokens(tokenizer(*pair, return_tensors="pt"))).logits for pair in pairs])
        z = logits[:, columns].flatten()
        head = HEADS.heads[HEADS.tasks[example.task]]
        if example.task == "number":
            expected.append((z[0] - float(example.targets[0])) ** 2)
        else:
            among = head.labels or example.choices
            p = z.log_softmax(0)
            right = -p[among.index(example.targets[0])]
            expected.append((1 - smoothing) * right - smoothing * p.mean())
    plain = torch.stack(expected)
    torch.testing.assert_close(losses.sums, plain, rtol=1e-9, atol=1e-12)
    assert_same(gradients(model, losses.sums.sum()), gradients(model, plain.sum()))


def _tokens(encoded: Any) -> dict[str, Tensor]:
    return {key: encoded[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in encoded}


def test_a_mixed_batch_with_a_bank_equals_the_tasks_by_themselves() -> None:
    model = model_of(HEADS)
    config = AdapterConfig(method="mhr", n_skills=2, n_heads=2, rank=2)
    bank = attach(model, config, list(EXAMPLES))
    model.double()
    randomise(bank)
    objective = make_objective("encoder", heads=HEADS)
    mixed = objective(model, batch_of(HEADS, [e for own in EXAMPLES.values() for e in own])).sums
    together = gradients(model, mixed.sum())
    apart = {name: torch.zeros_like(gradient) for name, gradient in together.items()}
    sums = []
    for own in EXAMPLES.values():
        found = objective(model, batch_of(HEADS, own)).sums
        sums.append(found.detach())
        for name, gradient in gradients(model, found.sum()).items():
            apart[name] += gradient
    torch.testing.assert_close(mixed.detach(), torch.cat(sums), rtol=1e-9, atol=1e-12)
    assert "classifier.weight" in together
    assert_same(together, apart)


def test_the_head_of_a_task_that_is_not_in_the_batch_has_a_gradient_of_zeros() -> None:
    """So that every process has the same gradients to average, whichever tasks it drew."""
    model = model_of(HEADS)
    found = gradients(
        model, make_objective("encoder", heads=HEADS)(model, batch_of(HEADS, EXAMPLES["three"])).sums.sum()
    )
    weight = found["classifier.weight"]
    assert weight[2:5].abs().min(1).values.min() > 0
    assert not weight[[0, 1, 5, 6]].any()


def test_consistency_is_over_the_classes_and_by_squares_for_numbers() -> None:
    heads = HEADS
    objective = make_objective("encoder", heads=heads)
    examples = [own[0] for own in EXAMPLES.values()]
    batch = batch_of(heads, examples)
    one, other = (objective(model_of(heads, seed), batch, compared=True) for seed in (1, 2))
    found = example_divergences(one, other)
    assert one.predicted is not None
    assert other.predicted is not None
    a, b = one.predicted.states.values, other.predicted.states.values
    for i, (example, size) in enumerate(zip(examples, (2, 3, 1, 3), strict=True)):
        if example.task == "number":
            expected = (a[i, 0] - b[i, 0]) ** 2
        else:
            p, q = a[i, :size].log_softmax(0), b[i, :size].log_softmax(0)
            expected = 0.5 * (
                F.kl_div(q, p, reduction="sum", log_target=True) + F.kl_div(p, q, reduction="sum", log_target=True)
            )
        torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-12)
        assert expected > 0
        assert objective.compares_outputs(example) == (example.task == "number")


def test_the_answer_is_found_wherever_a_choice_stands() -> None:
    batch = batch_of(HEADS, EXAMPLES["two"])
    assert batch["labels"].tolist() == [1, 0]  # positions among the head's classes
    assert batch["columns"].tolist() == [[0, 1], [0, 1]]


def test_what_a_head_cannot_answer_is_refused() -> None:
    with pytest.raises(DataError, match="has target 'w9', which is none of the classes that its head has: 'w1', 'w2'"):
        batch_of(HEADS, [Example("two", "w1", ("w9",), (), "x")])
    with pytest.raises(DataError, match="example 'x' of task 'number' has target 'many', expected a number"):
        batch_of(HEADS, [Example("number", "w1", ("many",), (), "x")])
    with pytest.raises(TaskError, match="no head for task 'tow': did you mean 'two'"):
        batch_of(HEADS.alone("two"), [Example("tow", "w1", ("w1",), (), "x")])


def test_bf16_computes_losses_in_float32() -> None:
    model = model_of(HEADS).float()
    batch = batch_of(HEADS, [e for own in EXAMPLES.values() for e in own])
    exact = make_objective("encoder", heads=HEADS)(model, batch).sums
    with torch.autocast("cpu", torch.bfloat16):
        rounded = make_objective("encoder", heads=HEADS)(model, batch).sums
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.05)
    assert all(math.isfinite(value) for value in rounded.tolist())
