"""MTL-LoRA's bank against its equations in plain torch, and what becomes of the tasks' matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse, collapse_task
from mhr.errors import ConfigError
from mhr.layers.parameter_groups import parameter_groups
from mhr.merging.averages import merge_weighted
from tests.models import randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def adapted(random: bool = True, **settings: Any) -> tuple[nn.Module, AdapterBank]:
    torch.manual_seed(0)
    model = Layer().double()
    config = {"method": "mtl-lora", "n_skills": 3, "rank": 2, "alpha": 3.0, "targets": ["layer"], **settings}
    bank = mhr.attach(model, AdapterConfig(**config), TASKS)
    if random:
        randomise(bank)
    return model, bank


@pytest.mark.parametrize("hooked", [False, True], ids=["a plain Linear", "a Linear that is called"])
def test_outputs_and_every_gradient_are_those_of_the_equations(hooked: bool) -> None:
    model, bank = adapted(router={"tau": 0.5})
    (layer,), (router,) = bank.layers.values(), bank.groups.values()
    if hooked:
        layer.base.register_forward_hook(lambda *_: None)
    named = {"A": layer.bank_a, "B": layer.bank_b, "Z": router.logits, "Lambda": router.transforms}
    assert named["Lambda"].shape == (3, 2, 2)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = []
    for example, task in zip(x, IDS, strict=True):
        t = TASKS.index(task)
        w = torch.softmax(router.logits[t, 0] / 0.5, 0)
        down = example @ layer.bank_a[0, 0] @ router.transforms[t]
        expected.append(layer.base(example) + 3.0 / 2 * sum(w[s] * (down @ layer.bank_b[0, s]) for s in range(3)))
    stated = torch.stack(expected)
    found = model(x, task_ids=IDS)
    torch.testing.assert_close(found, stated, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(stated)
    leaves = {"x": x, **named}
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, stated))
    for name, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


def test_it_begins_as_hydra_and_a_task_without_a_row_stays_there() -> None:
    model, _ = adapted(random=False)
    plain, hydra = adapted(random=False, method="hydra")
    for one in (model, plain):
        randomise(one.mhr)
        one.mhr.groups["layer"].logits.data.fill_(0.5)
    model.mhr.groups["layer"].transforms.data.copy_(torch.eye(2))
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x, task_ids=IDS), plain(x, task_ids=IDS), rtol=1e-12, atol=1e-12)
    model.mhr.groups["layer"].transforms.data.normal_()
    unknown = model(x, task_ids=model.mhr.for_batch(["wic"] * 4, unseen="uniform"))
    torch.testing.assert_close(unknown, plain(x, task_ids=IDS), rtol=1e-12, atol=1e-12)
    assert hydra.groups["layer"].transform(hydra.for_batch(IDS)) is None


def test_matrices_follow_their_tasks_and_new_ones_are_the_identity() -> None:
    _, bank = adapted()
    before = bank.groups["layer"].transforms.detach().clone()
    bank.set_tasks(["copa", "wic", "boolq"])
    after = bank.groups["layer"].transforms
    assert torch.equal(after[0], before[2])
    assert torch.equal(after[1], torch.eye(2, dtype=torch.float64))
    assert torch.equal(after[2], before[0])


def test_half_way_to_the_average_the_matrices_are_half_way_to_the_identity() -> None:
    model, bank = adapted()
    bank.toward_average = 1.0
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    plain = collapse(checkpoint_of(model, "tiny"), None).layers["layer"]
    torch.testing.assert_close(model(x, task_ids=IDS), bank.layers["layer"].base(x) + x @ plain.delta())
    bank.toward_average = 0.5
    found = bank.groups["layer"].transform(bank.for_batch(["rte"]))
    torch.testing.assert_close(found[0], (bank.groups["layer"].transforms[1] + torch.eye(2)) / 2)


def test_merges_take_the_matrices_along() -> None:
    model, bank = adapted()
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    checkpoint = checkpoint_of(model, "tiny")
    base = bank.layers["layer"].base(x)
    for task in TASKS:
        plain = collapse_task(checkpoint, task).layers["layer"]
        torch.testing.assert_close(model(x, task_ids=[task]), base + x @ plain.delta(), rtol=1e-12, atol=1e-12)
    both = merge_weighted(checkpoint, weights={"rte": 1.0, "copa": 3.0}).layers["layer"]
    each = {task: collapse_task(checkpoint, task).layers["layer"] for task in ("rte", "copa")}
    torch.testing.assert_close(both.a, 0.25 * each["rte"].a + 0.75 * each["copa"].a)
    torch.testing.assert_close(both.b, 0.25 * each["rte"].b + 0.75 * each["copa"].b)


def test_under_autocast_and_in_bfloat16_it_is_close() -> None:
    model = tiny_model("bert-encoder")
    bank = mhr.attach(model, AdapterConfig(method="mtl-lora"), TASKS)
    randomise(bank)
    ids = torch.randint(3, 64, (4, 7), generator=torch.Generator().manual_seed(0))
    exact = model(ids, task_ids=IDS)[0]
    with torch.autocast("cpu", torch.bfloat16):
        under = model(ids, task_ids=IDS)[0]
    assert (under - exact).norm() / exact.norm() < 0.05
    rounded = model.to(torch.bfloat16)(ids, task_ids=IDS)[0]
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_the_matrices_have_a_rate_of_their_own() -> None:
    model, bank = adapted(router={"transform_lr": 0.02})
    groups = {g.name: g for g in parameter_groups(model, lr=0.1, router_lr=0.5, weight_decay=0.3, decaying=set())}
    assert (groups["transforms"].lr, groups["transforms"].weight_decay) == (0.02, 0.0)
    assert list(groups["transforms"].parameters) == [bank.groups["layer"].transforms]
    assert list(groups["routing"].parameters) == [bank.groups["layer"].logits]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "hydra", "router": {"transform_lr": 0.1}}, "router: unknown setting of method 'hydra' 'transform_lr'"),
        ({"method": "mhr", "router": {"transform_lr": 0.1}}, "method 'mhr' has no settings of its own"),
        ({"adapter": "bottleneck"}, "adapter is 'bottleneck', but method 'mtl-lora' has a matrix between the two factors of a lora"),
        ({"adapter": "ia3"}, "adapter is 'ia3', but method 'mtl-lora' has a matrix"),
        ({"router": {"transform_lr": 0.0}}, r"router\.transform_lr is 0\.0, expected a number above 0"),
        ({"straight_through": True}, "straight_through is True, but method 'mtl-lora' has no logits in its routing"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(**{"method": "mtl-lora", **settings})
