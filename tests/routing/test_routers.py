"""One contract for every routing method, and what each of them computes."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from mhr.config import AdapterConfig
from mhr.errors import ConfigError
from mhr.methods import METHODS, ROUTING_METHODS
from mhr.routing import ParameterGroup, Router, RoutingBatch, TaskContexts, routers
from tests.routing.contexts import draw_contexts
from tests.routing.network import NAME, network_router

__all__ = ["network_router"]

TASKS = ["boolq", "rte", "copa"]
LEARNED = [name for name, method in ROUTING_METHODS.items() if method.noisy and not method.contexts]


def make(method: str, tasks: list[str] = TASKS, **settings: object) -> Router:
    torch.manual_seed(0)
    if ROUTING_METHODS[method].skill_per_task:
        settings.pop("n_skills", None)
    config = AdapterConfig(method=method, **settings)  # type: ignore[arg-type]
    router = routers[method](config, tasks)
    for p in router.parameters():
        torch.nn.init.normal_(p)
    give_contexts(router, tasks)
    return router


def give_contexts(router: Router, tasks: list[str]) -> None:
    """What routing is computed from, drawn for each task by its name, where it is."""
    contexts = getattr(router, "contexts", None)
    if isinstance(contexts, TaskContexts):
        contexts.set_tasks(tasks, [contexts.tasks.index(task) if task in contexts.tasks else None for task in tasks])
        draw_contexts(contexts)


def set_tasks(router: Router, tasks: list[str], keep: list[int | None]) -> None:
    """Change the tasks of a router, and of its bank's contexts, as a bank does."""
    router.set_tasks(tasks, keep)
    give_contexts(router, tasks)


def weights(router: Router, tasks: list[int], noise: Tensor | None = None) -> Tensor:
    ids = torch.tensor(tasks)
    return router(RoutingBatch(rows=torch.arange(len(tasks)), tasks=ids, noise=noise))


def assert_shares(router: Router, w: Tensor) -> None:
    """Weights [U, H, S] are shares of skills where they are to be, and otherwise anything but none."""
    if router.config.routing.convex:
        assert (w >= 0).all()
        torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:2]))
    else:
        assert w.isfinite().all()
        assert w.any(-1).all()


def test_every_method_has_a_router() -> None:
    assert set(routers) == set(ROUTING_METHODS)
    assert {method.routing for method in METHODS.values()} - {None} == set(ROUTING_METHODS)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown routing method 'mrh': did you mean 'mhr'"):
        routers["mrh"]


@pytest.mark.usefixtures("network_router")
@pytest.mark.parametrize("method", [*sorted(name for name, row in ROUTING_METHODS.items() if not row.by_token), NAME])
class TestContract:
    # Weights that are looked up could be compared bit by bit; those that a router computes, batch by batch, are close.
    def test_weights_are_non_negative_and_sum_to_one(self, method: str) -> None:
        router = make(method)
        w = weights(router, [2, 0, 0, 1])
        assert w.shape == (4, router.n_heads, router.n_skills)
        assert w.dtype == torch.float32
        assert_shares(router, w)
        torch.testing.assert_close(w[1], w[2])

    def test_a_task_without_a_row_is_routed_uniformly(self, method: str) -> None:
        router = make(method)
        w = weights(router, [-1, 1, -1])
        even = 1 / router.n_skills if router.config.routing.convex else 0.0
        assert torch.equal(w[0], torch.full_like(w[0], even))
        assert torch.equal(w[0], w[2])
        torch.testing.assert_close(w[1], weights(router, [1])[0])

    def test_the_table_is_what_the_tasks_are_routed_by(self, method: str) -> None:
        router = make(method)
        table = router.table()
        torch.testing.assert_close(table, weights(router, [0, 1, 2]).detach())
        assert not table.requires_grad

    def test_rows_follow_their_tasks(self, method: str) -> None:
        router = make(method)
        before = router.table()
        set_tasks(router, ["copa", "wic", "boolq"], [2, None, 0])
        after = router.table()
        assert after.shape[0] == 3
        if router.config.routing.skill_per_task:  # the skills move too, so each task is at its own position
            assert torch.equal(after, torch.eye(3)[:, None].expand_as(after))
        else:
            torch.testing.assert_close(after[0], before[2])
            torch.testing.assert_close(after[2], before[0])

    def test_tasks_can_be_added_and_removed(self, method: str) -> None:
        router = make(method)
        before = router.table()
        set_tasks(router, [*TASKS, "wic"], [0, 1, 2, None])
        assert router.table().shape[0] == 4
        assert_shares(router, router.table())
        set_tasks(router, TASKS, [0, 1, 2])
        torch.testing.assert_close(router.table(), before)
        set_tasks(router, ["rte"], [1])
        assert router.table().shape[0] == 1
        assert_shares(router, router.table())

    def test_routing_stays_in_float32_when_a_model_is_cast(self, method: str) -> None:
        router = make(method)
        before = router.table()
        torch.testing.assert_close(router.to(torch.bfloat16).table(), before)
        torch.testing.assert_close(router.half().table(), before)
        assert router.double().table().dtype == torch.float64

    def test_the_table_survives_a_state_dict(self, method: str) -> None:
        router, other = make(method), make(method)
        for p in other.parameters():
            torch.nn.init.zeros_(p)
        other.load_state_dict(router.state_dict())
        assert torch.equal(other.table(), router.table())  # the same computation of the same numbers

    def test_rows_are_those_of_tasks_and_the_rest_is_shared(self, method: str) -> None:
        router = make(method)
        shared = {name: t.clone() for name, t in router.state_dict().items() if name not in router.per_task}
        set_tasks(router, ["wic", "cb"], [None, None])
        state = router.state_dict()
        assert all(len(state[name]) == 2 for name in router.per_task)
        assert all(torch.equal(state[name], tensor) for name, tensor in shared.items())

    def test_every_parameter_is_in_one_group(self, method: str) -> None:
        router = make(method)
        groups = router.parameter_groups(ParameterGroup("routing", [], 0.1))
        grouped = [p for group in groups for p in group.parameters]
        assert sorted(map(id, grouped)) == sorted(map(id, router.parameters()))


@pytest.mark.parametrize("method", LEARNED)
def test_learned_routing_is_a_normalised_sigmoid(method: str) -> None:
    router = make(method).double()
    p = torch.sigmoid(router.logits)
    torch.testing.assert_close(router.table(), (p / p.sum(-1, keepdim=True)).detach(), rtol=1e-9, atol=0)


def test_learned_routing_starts_next_to_uniform() -> None:
    torch.manual_seed(0)
    router = routers["mhr"](AdapterConfig(n_heads=4), TASKS)
    logits = router.logits.detach()
    assert logits.shape == (3, 4, 8)
    assert 0.9e-3 < logits.abs().max() <= 1e-3
    assert abs(logits.mean()) < 2e-4


def test_noise_is_a_relaxed_bernoulli() -> None:
    router = make("mhr", n_heads=2, noise="per_task", temperature=0.5).double()
    noise = torch.randn(1, 2, *router.even.shape, dtype=torch.float64)
    p = torch.sigmoid((router.logits[[2, 0]] + noise[0]) / 0.5)
    expected = p / p.sum(-1, keepdim=True)
    torch.testing.assert_close(weights(router, [2, 0], noise), expected, rtol=1e-9, atol=0)


def test_the_temperature_belongs_to_the_noise() -> None:
    cold, warm = make("mhr", temperature=0.1), make("mhr", temperature=10.0)
    assert torch.equal(cold.table(), warm.table())


def test_straight_through_rounds_and_keeps_the_gradient() -> None:
    router = make("mhr", n_heads=2, straight_through=True).double()
    w = weights(router, [0, 1])
    logits = router.logits.detach()[:2]
    chosen = (logits >= 0).double()
    torch.testing.assert_close(w.detach(), chosen / chosen.sum(-1, keepdim=True))

    upstream = torch.randn_like(w)
    (w * upstream).sum().backward()
    p = torch.sigmoid(logits).requires_grad_()
    through = p + (chosen - p).detach()
    (through / through.sum(-1, keepdim=True) * upstream).sum().backward()
    slope = torch.sigmoid(logits) * (1 - torch.sigmoid(logits))
    torch.testing.assert_close(router.logits.grad[:2], p.grad * slope, rtol=1e-9, atol=1e-12)
    assert torch.equal(router.logits.grad[2], torch.zeros_like(router.logits.grad[2]))


def test_straight_through_routes_a_head_uniformly_that_rounds_every_skill_away() -> None:
    router = make("poly", straight_through=True)
    with torch.no_grad():
        router.logits.copy_(-router.logits.abs() - 1)
    w = router.table()
    assert torch.equal(w, torch.full_like(w, 1 / 8))
    weights(router, [0]).square().sum().backward()
    assert router.logits.grad.isfinite().all()


def test_private_gives_each_task_its_own_skill() -> None:
    assert torch.equal(make("private").table(), torch.eye(3)[:, None])
    with pytest.raises(ConfigError, match="private has one skill per task"):
        AdapterConfig(method="private", n_skills=4)


def test_shared_has_one_skill_and_uniform_averages() -> None:
    assert torch.equal(make("shared").table(), torch.ones(3, 1, 1))
    assert torch.equal(make("uniform", n_skills=5).table(), torch.full((3, 1, 5), 0.2))


def test_random_differs_between_tasks_and_is_never_trained() -> None:
    router = make("random", n_heads=2)
    table = router.table()
    assert not torch.equal(table[0], table[1])
    assert list(router.parameters()) == []


def test_hash_is_fixed_by_the_name_of_the_task() -> None:
    router = make("hash", n_heads=2)
    for t, name in enumerate(TASKS):
        for head in range(2):
            digest = hashlib.sha256(f"{head}:{name}".encode()).digest()
            skill = int.from_bytes(digest[:8], "big") % 8
            assert router.table()[t, head].argmax() == skill
            assert router.table()[t, head, skill] == 1
    renamed = make("hash", ["rte", "wic"], n_heads=2)
    assert torch.equal(renamed.table()[0], router.table()[1])
