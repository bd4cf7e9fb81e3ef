"""HydraLoRA's bank against its equations in plain torch, and how its parts begin and are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of
from mhr.adapters.peft_poly import check_poly
from mhr.errors import CheckpointError, ConfigError
from mhr.routing import Router, RoutingBatch, routers
from tests.models import randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def adapted(**settings: Any) -> tuple[nn.Module, AdapterBank]:
    torch.manual_seed(0)
    model = Layer().double()
    config = {"method": "hydra", "n_skills": 3, "rank": 2, "alpha": 3.0, "targets": ["layer"], **settings}
    bank = mhr.attach(model, AdapterConfig(**config), TASKS)
    randomise(bank)
    return model, bank


@pytest.mark.parametrize("router", [{}, {"tau": 0.5}, {"weights": "sigmoid"}], ids=["softmax", "tau", "sigmoid"])
def test_outputs_and_every_gradient_are_those_of_the_equations(router: dict[str, Any]) -> None:
    model, bank = adapted(router=router)
    (layer,), (rows,) = bank.layers.values(), bank.groups.values()
    named = {"A": layer.bank_a, "B": layer.bank_b, "Z": rows.logits}
    assert {name: tuple(p.shape) for name, p in named.items()} == {
        "A": (1, 1, 6, 2), "B": (1, 3, 2, 10), "Z": (3, 1, 3)
    }  # fmt: skip
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = []
    for example, task in zip(x, IDS, strict=True):
        z = rows.logits[TASKS.index(task), 0]
        p = torch.sigmoid(z)
        w = p / p.sum() if router.get("weights") == "sigmoid" else torch.softmax(z / router.get("tau", 1.0), 0)
        down = example @ layer.bank_a[0, 0]
        update = sum(w[s] * (down @ layer.bank_b[0, s]) for s in range(3))
        expected.append(layer.base(example) + 3.0 / 2 * update)
    stated = torch.stack(expected)
    found = model(x, task_ids=IDS)
    torch.testing.assert_close(found, stated, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(stated)
    leaves = {"x": x, **named}
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, stated))
    for name, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


def made(**router: Any) -> Router:
    torch.manual_seed(0)
    return routers["hydra"](AdapterConfig(method="hydra", router=router), TASKS)


def test_the_factors_can_come_apart_and_a_later_task_begins_next_to_uniform() -> None:
    router = made()
    assert router.logits.detach().std() > 0.5
    router.set_tasks(["rte", "wic"], [1, None])
    table = router.table()
    assert (table[1] - 1 / 8).abs().max() < 1e-3
    assert (table[0] - 1 / 8).abs().max() > 0.05
    # From B = 0 and one A, a step moves the B of different skills differently.
    model, bank = adapted()
    (layer,), (rows,) = bank.layers.values(), bank.groups.values()
    torch.nn.init.zeros_(layer.bank_b)
    rows.logits.data.normal_()
    model(torch.randn(4, 5, 6, dtype=torch.float64), task_ids=IDS).sum().backward()
    gradient = layer.bank_b.grad[0]
    assert not torch.allclose(gradient[0], gradient[1])


def test_a_task_without_a_row_is_routed_uniformly() -> None:
    for weights in ("softmax", "sigmoid"):
        table = made(weights=weights)(RoutingBatch(rows=torch.arange(2), tasks=torch.tensor([-1, 2])))
        assert torch.equal(table[0], torch.full_like(table[0], 1 / 8))
        torch.testing.assert_close(table.sum(-1), torch.ones(2, 1))


def test_a_bank_may_share_the_other_projection_or_none() -> None:
    for share, sizes in (("down", (1, 3)), ("up", (3, 1)), ("none", (3, 3))):
        _, bank = adapted(share=share)
        (layer,) = bank.layers.values()
        assert (layer.bank_a.shape[1], layer.bank_b.shape[1]) == sizes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"router": {"tau": 2.0, "weights": "sigmoid"}}, r"router\.tau is 2\.0, which is of the softmax, but weights is 'sigmoid'"),
        ({"router": {"weights": "relu"}}, r"router\.weights is 'relu', expected one of softmax, sigmoid"),
        ({"router": {"tau": 0.0}}, r"router\.tau is 0\.0, expected a number above 0"),
        ({"adapter": "ia3", "share": "down"}, "share is 'down', but hydra routes ia3 as a whole"),
        ({"noise": "per_task"}, "noise is 'per_task', but method 'hydra' has no logits in its routing"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(**{"method": "hydra", **settings})


@pytest.mark.parametrize("method", ["hydra", "context-mhr"])
def test_what_pefts_poly_cannot_hold_is_refused_with_the_way_on(method: str) -> None:
    model = tiny_model("bert-encoder")
    mhr.attach(model, AdapterConfig(method=method), TASKS)
    with pytest.raises(CheckpointError, match=rf"has method '{method}' .* or one task with --to peft-lora"):
        check_poly(checkpoint_of(model, "tiny"))
