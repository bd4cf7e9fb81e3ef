"""Drawn routing: seeded, even, independent, and for whole batches, examples or tokens as the bank is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.errors import ConfigError, TaskError
from mhr.routing.adamix import draw, seeded
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


def test_the_same_numbers_draw_the_same_skills() -> None:
    def drawn(*numbers: int) -> Tensor:
        return draw(seeded(*numbers), 40, (8, 8), 1)

    first = drawn(42, 7, 1)
    assert first.shape == (40, 2, 1)
    assert torch.equal(first, drawn(42, 7, 1))
    for other in ((43, 7, 1), (42, 8, 1), (42, 7, 0), (42, 1, 7), (4, 27, 1)):
        assert not torch.equal(first, drawn(*other)), other


def test_they_are_these_on_every_machine() -> None:
    assert draw(seeded(0, 0, 0), 3, (4, 4), 2).tolist() == [[[3, 0], [0, 2]], [[3, 3], [1, 1]], [[0, 3], [3, 2]]]


def test_no_draw_depends_on_another() -> None:
    steps, routers, skills = 4000, 3, 4
    drawn = torch.stack([draw(seeded(1, step, 0), routers, (skills, skills), 1) for step in range(steps)])
    columns = torch.nn.functional.one_hot(drawn.flatten(1), skills).double()  # [steps, routers * 2, skills]
    shares = columns.mean(0)
    # Standard errors: 0.0068 of a share, 0.0039 of a joint one.
    assert (shares - 1 / skills).abs().max() < 0.03
    joint = torch.einsum("nis,njt->ijst", columns, columns) / steps
    apart = ~torch.eye(routers * 2, dtype=torch.bool)
    assert (joint[apart] - 1 / skills**2).abs().max() < 0.018
    after = torch.einsum("nis,nit->ist", columns[1:], columns[:-1]) / (steps - 1)
    assert (after - 1 / skills**2).abs().max() < 0.018


def adapted(name: str = "t5", **config: Any) -> tuple[Any, AdapterBank]:
    model = tiny_model(name)
    settings = {"method": "adamix", "adapter": "bottleneck", **config}
    bank = mhr.attach(model, AdapterConfig(**settings), TASKS)
    randomise(bank)
    return model, bank


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**random_batch(model), task_ids=IDS)[1]
    return found


@pytest.mark.parametrize("adapter", ["bottleneck", "lora", "ia3"])
def test_training_draws_anew_for_every_pass_and_repeats_after_seeding(adapter: str) -> None:
    model, bank = adapted(adapter=adapter)
    model.train()
    bank.seed_draws(1, 2)
    first, second = outputs(model), outputs(model)
    assert not torch.equal(first, second)
    bank.seed_draws(1, 2)
    assert torch.equal(outputs(model), first)
    assert torch.equal(outputs(model), second)
    bank.seed_draws(1, 2, 1)
    assert torch.equal(outputs(model), second)


def test_a_batch_in_training_takes_one_skill_per_layer_and_side() -> None:
    _, bank = adapted(n_skills=8)
    bank.train()
    draws = bank.for_batch(IDS).draws
    assert draws.shape == (4, 2, 1)
    assert len({tuple(pair) for pair in draws.flatten(1).tolist()}) > 1
    shared = adapted(granularity="coarse")[1].train().for_batch(IDS).draws
    assert shared.shape == (1, 2, 1)


def test_a_shared_projection_is_never_drawn() -> None:
    for side, share in enumerate(("down", "up")):
        _, bank = adapted(share=share)
        bank.train()
        draws = torch.stack([bank.for_batch(IDS).draws for _ in range(20)])
        assert not draws[:, :, side].any()
        assert draws[:, :, 1 - side].any()


def test_training_goes_on_from_what_evaluation_averages() -> None:
    model, bank = adapted()
    before = outputs(model)
    assert torch.equal(outputs(model), before)
    model.train()
    optimizer = torch.optim.SGD(bank.adapter_parameters(), lr=0.1)
    model(**random_batch(model), task_ids=IDS).loss.backward()
    optimizer.step()
    model.eval()
    after = outputs(model)
    assert not torch.allclose(after, before)
    # Nothing was kept of the average before: a fresh model with these parameters says the same.
    other, copy = adapted()
    for p, q in zip(copy.adapter_parameters(), bank.adapter_parameters(), strict=True):
        p.data.copy_(q.data)
    assert torch.equal(outputs(other), after)


@pytest.mark.parametrize("adapter", ["bottleneck", "lora"])
def test_inference_by_sentence_draws_for_every_example(adapter: str) -> None:
    model, bank = adapted(adapter=adapter)
    bank.inference = "sentence"
    batch = bank.for_batch(IDS)
    assert batch.draws.shape == (len(bank.groups), 2, 4)
    with torch.no_grad():
        inputs = random_batch(model)
        whole = model(**inputs, task_ids=batch).logits
        for i in range(4):
            alone = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
            own = mhr.routing.RoutingBatch(batch.rows, batch.tasks, draws=batch.draws[:, :, i : i + 1])
            torch.testing.assert_close(model(**alone, task_ids=own).logits, whole[i : i + 1])
    bank.seed_draws(5, 0)
    first = outputs(model)
    bank.seed_draws(5, 0)
    assert torch.equal(outputs(model), first)
    with pytest.raises(TaskError, match="task_ids is missing: inference 'sentence' draws"):
        model(**random_batch(model))


def test_inference_by_token_draws_for_every_token() -> None:
    model, bank = adapted()
    bank.inference = "token"
    layer = next(iter(bank.layers.values()))
    x = torch.randn(2, 3, layer.in_features)
    bank.seed_draws(5, 0)
    with torch.no_grad(), bank.routing(IDS[:2]):
        y = layer(x).reshape(6, -1)
    down, up = draw(seeded(5, 0, 0), 1, layer.sides, 6)[0].tolist()
    h = layer.base(x).reshape(6, -1)
    a, bias_a, b, bias_b = layer.mixed(None)
    for n in range(6):
        d, u = down[n], up[n]
        expected = h[n] + torch.nn.functional.gelu(h[n] @ a[d] + bias_a[d, 0]) @ b[u] + bias_b[u, 0]
        torch.testing.assert_close(y[n], expected)
    first = outputs(model)
    assert not torch.equal(outputs(model), first)
    bank.inference = "average"
    assert torch.equal(outputs(model), outputs(model))


@pytest.mark.parametrize("mode", ["average", "sentence", "token"])
@pytest.mark.parametrize("adapter", ["bottleneck", "lora"])
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_every_mode_generates(name: str, adapter: str, mode: str) -> None:
    model, bank = adapted(name, adapter=adapter)
    bank.inference = mode
    inputs = random_batch(model)["input_ids"]

    def write() -> Tensor:
        bank.seed_draws(3, 0)
        written: Tensor = model.generate(inputs, task_ids=IDS, max_new_tokens=4, num_beams=2)
        return written

    assert torch.equal(write(), write())


def test_inference_is_checked() -> None:
    _, bank = adapted()
    with pytest.raises(ConfigError, match="inference is 'sentense', expected one of average, sentence, token: did you"):
        bank.inference = "sentense"
    assert bank.inference == "average"
    bank = mhr.attach(tiny_model("t5"), AdapterConfig(), TASKS)
    with pytest.raises(ConfigError, match="inference is 'token', but method 'mhr' draws no skills"):
        bank.inference = "token"
    bank.inference = "average"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_heads": 2}, "n_heads is 2, but adamix has 1 head"),
        ({"noise": "per_task"}, "method 'adamix' has no learned routing"),
        ({"share": "both"}, "share is 'both', expected one of none, up, down"),
        ({"method": "mhr", "share": "up"}, "share is 'up', but mhr routes bottleneck as a whole"),
        ({"adapter": "ia3", "share": "up"}, "share is 'up', but adamix routes ia3 as a whole"),
        ({"dropout": 0.1}, "dropout is 0.1, which is for lora, but adapter is 'bottleneck'"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a number of at least 0 and below 1"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(**{"method": "adamix", "adapter": "bottleneck", **settings})


@pytest.mark.parametrize("share", ["none", "up", "down"])
def test_loras_begin_as_copies_and_come_apart(share: str) -> None:
    model, bank = adapted("gpt2", adapter="lora", dropout=0.1, alpha=32.0, share=share)
    for layer in bank.layers.values():
        layer.reset()
        assert (layer.bank_a == layer.bank_a[:, :1]).all()
        assert layer.bank_a.std() > 0
        assert not layer.bank_b.any()
    model.train()
    optimizer = torch.optim.Adam(bank.adapter_parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        model(**random_batch(model), task_ids=IDS).loss.backward()
        optimizer.step()
    layer = next(iter(bank.layers.values()))
    for name, shared in (("bank_a", share == "down"), ("bank_b", share == "up")):
        factors = getattr(layer, name)
        assert factors.shape[1] == (1 if shared else 4)
        if not shared:
            assert not torch.allclose(factors[0, 0], factors[0, 1])


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"adapter": "bottleneck"}, "up"),
        ({"adapter": "lora"}, "up"),
        ({"adapter": "ia3"}, "none"),
        ({"adapter": "lora", "share": "none"}, "none"),
        ({"adapter": "lora", "share": "down"}, "down"),
        ({"method": "mhr"}, "none"),
    ],
)
def test_what_is_drawn_shares_the_up_projection_unless_told(settings: dict[str, Any], share: str) -> None:
    assert AdapterConfig(**{"method": "adamix", **settings}).share == share
