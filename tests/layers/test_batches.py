"""Mixed-task batches: every row is routed as it would be alone, in training, in generation, and with several rows per example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.pytorch_utils import Conv1D

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.errors import TargetError, TaskError
from tests.architectures import configuration
from tests.models import ENCODER_DECODERS, GENERATORS, MODELS, random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


def adapted(name: str, size: float = 0.3, **config: Any) -> tuple[PreTrainedModel, AdapterBank]:
    model = tiny_model(name).double()
    bank = mhr.attach(model, AdapterConfig(**{"n_heads": 4, "n_skills": 3, **config}), TASKS)
    randomise(bank, size=size)
    return model, bank


def fold(model: PreTrainedModel, bank: AdapterBank, task: str) -> PreTrainedModel:
    """A plain model whose weights are those of `model` routed by one task."""
    plain = tiny_model(NAMES[type(model).__name__]).double()
    row = bank.tasks.index(task)
    with torch.no_grad():
        for name, layer in bank.layers.items():
            weights = layer.router.table()[row : row + 1]
            target = plain.get_submodule(name)
            if bank.config.adapter == "ia3":
                (v,) = layer.vectors(weights)
                target.weight.mul_(v[:, None])
                if target.bias is not None:
                    target.bias.mul_(v)
            else:
                a, b = layer.mixed(weights)
                update = bank.config.scaling * a[0] @ b[0]
                target.weight.add_(update if isinstance(target, Conv1D) else update.T)
    return plain


NAMES = {type(tiny_model(name)).__name__: name for name in MODELS}


def logits(output: Any) -> Tensor:
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def rows_of(batch: dict[str, Tensor], task: str) -> tuple[list[int], dict[str, Tensor]]:
    rows = [i for i, t in enumerate(IDS) if t == task]
    return rows, {key: value[rows] for key, value in batch.items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_mixed_batch_is_each_task_on_the_folded_model(name: str) -> None:
    model, bank = adapted(name)
    batch = random_batch(model)
    batch.pop("labels", None)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    mixed = logits(model(**batch, task_ids=IDS))
    for task in TASKS:
        rows, own = rows_of(batch, task)
        torch.testing.assert_close(mixed[rows], logits(fold(model, bank, task)(**own)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_ia3_on_a_mixed_batch_is_each_task_on_the_folded_model(name: str) -> None:
    model, bank = adapted(name, adapter="ia3")
    batch = random_batch(model)
    batch["decoder_input_ids" if name == "t5" else "token_type_ids"] = batch.pop("labels").new_zeros(4, 7).long()
    mixed = logits(model(**batch, task_ids=IDS))
    for task in TASKS:
        rows, own = rows_of(batch, task)
        torch.testing.assert_close(mixed[rows], logits(fold(model, bank, task)(**own)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["mhr", "private", "hash", "shared"])
def test_gradients_of_a_mixed_batch_are_the_sum_over_its_tasks(method: str) -> None:
    model, _ = adapted("t5", method=method, n_heads=None, n_skills=None)
    trained = [p for p in model.parameters() if p.requires_grad]
    batch = random_batch(model)
    out = logits(model(**batch, task_ids=IDS))
    upstream = torch.randn_like(out)
    mixed = torch.autograd.grad((out * upstream).sum(), trained)
    total = [torch.zeros_like(p) for p in trained]
    for task in TASKS:
        rows, own = rows_of(batch, task)
        alone = logits(model(**own, task_ids=[task] * len(rows)))
        for sum_, g in zip(total, torch.autograd.grad((alone * upstream[rows]).sum(), trained), strict=True):
            sum_ += g
    assert any(g.any() for g in mixed)
    for got, expected in zip(mixed, total, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "returned beams": {"num_beams": 4, "num_return_sequences": 2},
}


@pytest.mark.parametrize("how", GENERATION)
@pytest.mark.parametrize("name", GENERATORS)
def test_generation_follows_each_row_s_task(name: str, how: str) -> None:
    model, bank = adapted(name, size=3.0)
    batch = random_batch(model)
    del batch["labels"]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, **GENERATION[how]}
    n = settings.get("num_return_sequences", 1)
    mixed = model.generate(**batch, task_ids=IDS, **settings)
    assert mixed.shape[0] == 4 * n
    differs = False
    for task in TASKS:
        rows, own = rows_of(batch, task)
        expected = fold(model, bank, task).generate(**own, **settings)
        assert torch.equal(mixed.reshape(4, n, -1)[rows].flatten(0, 1), expected)
        differs |= not torch.equal(expected, tiny_model(name).double().generate(**own, **settings))
    assert differs


@pytest.mark.parametrize("name", GENERATORS)
def test_sampled_sequences_follow_their_example(name: str) -> None:
    model, bank = adapted(name)
    batch = {key: value[:1] for key, value in random_batch(model).items() if key != "labels"}
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    sampled = model.generate(**batch, task_ids=["rte"], **settings)
    torch.manual_seed(0)
    assert torch.equal(sampled, fold(model, bank, "rte").generate(**batch, **settings))
    twice = {key: value.repeat(2, 1) for key, value in batch.items()}
    assert model.generate(**twice, task_ids=["rte", "copa"], **settings).shape[0] == 6


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_several_choices_are_decoded_per_encoded_example(name: str) -> None:
    model, bank = adapted(name)
    batch = random_batch(model)
    choices = torch.randint(3, 60, (4 * 3, 2))
    encoder = model.get_encoder()
    mask = batch["attention_mask"].repeat_interleave(3, 0)
    routed = bank.for_batch(IDS)
    with bank.routing(routed):
        states = encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    repeated = BaseModelOutput(last_hidden_state=states.repeat_interleave(3, 0))
    with bank.routing(routed.over(3)):
        out = model(encoder_outputs=repeated, attention_mask=mask, decoder_input_ids=choices).logits
    for i, task in enumerate(IDS):
        plain = fold(model, bank, task)
        own = {"input_ids": batch["input_ids"][i : i + 1], "attention_mask": batch["attention_mask"][i : i + 1]}
        for k in range(3):
            row = 3 * i + k
            expected = plain(**own, decoder_input_ids=choices[row : row + 1]).logits[0]
            torch.testing.assert_close(out[row], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", ["BertForMultipleChoice", "GPT2DoubleHeadsModel"])
def test_choices_of_an_example_in_an_axis_of_their_own(name: str) -> None:
    """input_ids [B, C, L], whose layers get B * C rows."""
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls(configuration("bert" if "Bert" in name else "gpt2")).eval()
    randomise(mhr.attach(model, AdapterConfig(method="private", rank=2), ["boolq", "rte", "copa"]))
    ids = torch.randint(5, 60, (4, 3, 6))
    tasks = ["rte", "boolq", "rte", "copa"]
    mixed = model(input_ids=ids, task_ids=tasks).logits
    alone = torch.cat([model(input_ids=ids[i : i + 1], task_ids=[task]).logits for i, task in enumerate(tasks)])
    torch.testing.assert_close(mixed, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ids", [TASKS, IDS * 2, IDS[:2], ["rte"], ["rte"] * 8])
@pytest.mark.parametrize("method", ["mhr", "shared"])
def test_as_many_task_ids_as_rows(method: str, ids: list[str]) -> None:
    """Multiples too are refused, in calls, in generation and where all rows are routed alike."""
    model, bank = adapted("t5", method=method, n_heads=None, n_skills=1 if method == "shared" else 3)
    batch = random_batch(model)
    expected = f"{len(ids)} task ids for input_ids with 4 rows: expected one task id per row"
    with pytest.raises(TaskError, match=expected):
        model(**batch, task_ids=ids)
    with pytest.raises(TaskError, match=expected):
        model(**batch, task_ids=bank.for_batch(ids))
    with pytest.raises(TaskError, match=expected), bank.routing(ids):
        model(**batch)
    inputs = {"attention_mask": batch["attention_mask"], "max_new_tokens": 2}
    with pytest.raises(TaskError, match=expected):
        model.generate(input_ids=batch["input_ids"], **inputs, task_ids=ids, num_beams=2)
    with pytest.raises(TaskError, match=expected):
        model.generate(batch["input_ids"], **inputs, task_ids=ids, num_beams=2)
    with pytest.raises(TaskError, match=expected), bank.routing(ids):
        model.generate(batch["input_ids"], **inputs)


def test_rows_of_every_input_are_counted() -> None:
    model, _ = adapted("t5")
    batch = random_batch(model)
    encoder = model.get_encoder()
    with model.mhr.routing(IDS):
        states = encoder(batch["input_ids"]).last_hidden_state
    for inputs in (
        {"encoder_outputs": (states.repeat_interleave(2, 0),), "labels": batch["labels"].repeat_interleave(2, 0)},
        {"encoder_outputs": BaseModelOutput(states), "decoder_input_ids": batch["labels"].repeat(2, 1)},
        {"inputs_embeds": states.repeat(2, 1, 1), "labels": batch["labels"].repeat(2, 1)},
    ):
        with pytest.raises(TaskError, match="4 task ids for .* with 8 rows"):
            model(**inputs, task_ids=IDS)


def test_a_part_of_the_model_that_gets_other_rows_is_an_error_that_names_the_layer() -> None:
    model, bank = adapted("t5")
    batch = random_batch(model)
    with (
        pytest.raises(TargetError, match=r"layer 'encoder\.block\.0.*' got x \[4, 7, 32\] for 3 task ids"),
        bank.routing(TASKS),
    ):
        model.get_encoder()(batch["input_ids"])


def test_one_routing_is_one_segment_whatever_the_size_of_the_batch() -> None:
    _, bank = adapted("bert-encoder")
    one, four = bank.for_batch(["rte"]), bank.for_batch(["rte"] * 4)
    assert one.rows.tolist() == four.rows.tolist() == [0]
    assert (one.examples, four.examples) == (1, 4)


def test_a_call_without_task_ids_is_an_error_unless_only_one_routing_is_possible() -> None:
    model, bank = adapted("bert-encoder")
    batch = random_batch(model)
    with pytest.raises(TaskError, match="without task ids"):
        model(**batch)
    expected = model(**batch, task_ids=["boolq"] * 4)[0]
    with pytest.raises(TaskError, match="without task ids"):  # the last batch is not kept
        model(**batch)
    bank.set_tasks(["boolq"])
    assert torch.equal(model(**batch)[0], expected)
    shared, _ = adapted("t5", method="shared", n_heads=1, n_skills=1)
    inputs = random_batch(shared)
    assert torch.equal(shared(**inputs).loss, shared(**inputs, task_ids=IDS).loss)
    assert shared.generate(inputs["input_ids"], max_new_tokens=2).shape[0] == 4


def test_a_block_routes_the_calls_inside_it_and_a_call_s_own_tasks_come_first() -> None:
    model, bank = adapted("bert-encoder")
    batch = random_batch(model)
    first, second = (model(**batch, task_ids=[task] * 4)[0] for task in ("boolq", "rte"))
    with bank.routing(["boolq"] * 4):
        assert torch.equal(model(**batch)[0], first)
        with bank.routing(["rte"] * 4):
            assert torch.equal(model(**batch)[0], second)
        assert torch.equal(model(**batch, task_ids=["rte"] * 4)[0], second)
        assert torch.equal(model(**batch)[0], first)
    assert bank.state.batch is None


def test_a_call_that_fails_leaves_no_routing_behind() -> None:
    model, bank = adapted("bert-encoder")
    batch = random_batch(model)
    expected = model(**batch, task_ids=["boolq"] * 4)[0]
    with bank.routing(["boolq"] * 4):
        with pytest.raises(TaskError, match="unknown task 'rt': did you mean 'rte'"):
            model(**batch, task_ids=["rt"] * 4)
        with pytest.raises(ValueError, match="input_ids"):
            model(task_ids=["rte"] * 4)
        assert torch.equal(model(**batch)[0], expected)
    assert bank.state.batch is None
    assert bank.state.block is None


def test_a_call_that_is_interrupted_leaves_no_routing_behind() -> None:
    model, bank = adapted("bert-encoder")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.pooler.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**random_batch(model), task_ids=["rte"] * 4)
    hook.remove()
    with pytest.raises(TaskError, match="without task ids"):
        model(**random_batch(model))
