"""Heads that all tasks share, against the equations in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse_task
from mhr.errors import ConfigError
from tests.models import randomise

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
HEADS, SHARED, SKILLS = 4, 3, 3


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def adapted() -> tuple[nn.Module, AdapterBank]:
    torch.manual_seed(0)
    model = Layer().double()
    config = AdapterConfig(
        method="shared-heads",
        n_heads=HEADS,
        n_skills=SKILLS,
        rank=2,
        alpha=3.0,
        targets=["layer"],
        router={"shared": SHARED},
    )
    bank = mhr.attach(model, config, TASKS)
    randomise(bank)
    return model, bank


def test_outputs_and_every_gradient_are_those_of_the_equations() -> None:
    model, bank = adapted()
    (layer,), (router,) = bank.layers.values(), bank.groups.values()
    named = {"A": layer.bank_a, "B": layer.bank_b, "Z": router.logits, "common": router.common}
    assert (named["Z"].shape, named["common"].shape) == ((3, HEADS - SHARED, SKILLS), (SHARED, SKILLS))
    x = torch.randn(4, 5, 8, dtype=torch.float64, requires_grad=True)
    expected = []
    for example, task in zip(x, IDS, strict=True):
        down = torch.zeros(5, 2, dtype=torch.float64)
        weights = []
        for head in range(HEADS):
            z = router.common[head] if head < SHARED else router.logits[TASKS.index(task), head - SHARED]
            p = torch.sigmoid(z)
            weights.append(p / p.sum())
            block = example[:, 2 * head : 2 * head + 2]
            down = down + sum(weights[head][s] * (block @ layer.bank_a[head, s]) for s in range(SKILLS))
        blocks = [sum(weights[h][s] * (down @ layer.bank_b[h, s]) for s in range(SKILLS)) for h in range(HEADS)]
        expected.append(layer.base(example) + 3.0 / 2 * torch.cat(blocks, -1))
    stated = torch.stack(expected)
    found = model(x, task_ids=IDS)
    torch.testing.assert_close(found, stated, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(stated)
    leaves = {"x": x, **named}
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, stated))
    for name, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


def test_tasks_have_the_shared_blocks_of_the_factors_in_common_and_no_others() -> None:
    model, bank = adapted()
    table = bank.groups["layer"].table()
    assert torch.equal(table[0, :SHARED], table[1, :SHARED])
    assert not torch.isclose(table[0, SHARED:], table[1, SHARED:]).any()
    checkpoint = checkpoint_of(model, "tiny")
    one, two = (collapse_task(checkpoint, task).layers["layer"] for task in ("rte", "copa"))
    torch.testing.assert_close(one.a[: 2 * SHARED], two.a[: 2 * SHARED])
    torch.testing.assert_close(one.b[:, : 3 * SHARED], two.b[:, : 3 * SHARED])
    assert not torch.isclose(one.b[:, 3 * SHARED :], two.b[:, 3 * SHARED :]).any()


def test_a_new_task_finds_the_shared_heads_as_they_are() -> None:
    _, bank = adapted()
    before = bank.groups["layer"].table()
    bank.set_tasks(["wic", "rte"])
    after = bank.groups["layer"].table()
    torch.testing.assert_close(after[0, :SHARED], before[0, :SHARED])
    torch.testing.assert_close(after[1], before[1])
    assert (after[0, SHARED:] - 1 / SKILLS).abs().max() < 1e-3
    assert list(bank.shared_routing()) == ["routers.layer.common"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"router": {"shared": 8}}, "router.shared is 8, but the bank has n_heads 8, so that no head is a task's own: use at most 7"),
        ({"n_heads": 1}, "n_heads is 1, but with shared heads there is at least one more"),
        ({"router": {"shared": 0}}, r"router\.shared is 0, expected an integer of at least 1"),
        ({"noise": "per_task"}, "noise is 'per_task', but method 'shared-heads' has no logits in its routing"),
        ({"method": "mhr", "router": {"shared": 2}}, "method 'mhr' has no settings of its own"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(**{"method": "shared-heads", **settings})
