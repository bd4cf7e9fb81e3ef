"""Routing from contexts, against its equations in plain torch, and the contexts themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mhr
from mhr import AdapterConfig
from mhr.errors import ConfigError, TaskError
from mhr.routing import Contexts, Router, RoutingBatch, routers
from tests.models import random_batch, randomise, tiny_model
from tests.routing.contexts import draw_contexts, embedding

TASKS = ["boolq", "rte", "copa"]
SIZE = 5


def config(**settings: Any) -> AdapterConfig:
    own = {"size": SIZE, "hidden": 6, **settings.pop("router", {})}
    return AdapterConfig(**{"method": "context-mhr", "n_heads": 2, "n_skills": 3, **settings}, router=own)


def made(n: int = 1, **settings: Any) -> tuple[Contexts, list[Router]]:
    """Contexts in float64, and n routers on them, with normal values."""
    torch.manual_seed(0)
    contexts = Contexts(config(**settings), TASKS).double()
    draw_contexts(contexts, center=True)
    own = [routers["context-mhr"](config(**settings), TASKS, i, contexts).double() for i in range(n)]
    for p in (*contexts.first.parameters(), *(p for router in own for p in router.parameters())):
        torch.nn.init.normal_(p)
    contexts.vectors.requires_grad_(True)
    return contexts, own


def stated(contexts: Contexts, router: Router, tasks: list[int], noise: Tensor | None, temperature: float) -> Tensor:
    """The weights as the equations have them, head by head and skill by skill."""
    rows = []
    for u, task in enumerate(tasks):
        hidden = torch.relu(contexts.first.weight @ contexts.vectors[task] + contexts.first.bias)
        z = torch.stack(
            [
                torch.stack([router.output[h, s] @ hidden + router.bias[h, s] for s in range(router.n_skills)])
                for h in range(router.n_heads)
            ]
        )
        p = torch.sigmoid((z if noise is None else z + noise[u]) / temperature)
        rows.append(p / (p.sum(-1, keepdim=True) + 1e-12))
    return torch.stack(rows)


@pytest.mark.parametrize("noisy", [False, True])
def test_weights_and_every_gradient_are_those_of_the_equations(noisy: bool) -> None:
    contexts, own = made(3, noise="per_task", temperature=0.7)
    tasks = [2, 0, 2]
    noise = torch.randn(len(own), len(tasks), 2, 3, dtype=torch.float64) if noisy else None
    batch = RoutingBatch(rows=torch.arange(3), tasks=torch.tensor(tasks), noise=noise)
    found = type(own[0]).together(own, batch)
    expected = [
        stated(contexts, router, tasks, None if noise is None else noise[i], 0.7 if noisy else 1.0)
        for i, router in enumerate(own)
    ]
    named = {**dict(contexts.named_parameters())}
    named |= {f"{i}.{name}": p for i, router in enumerate(own) for name, p in router.named_parameters()}
    assert len(named) == 3 + 2 * len(own)
    upstream = [torch.randn_like(w) for w in expected]

    def gradients(weights: list[Tensor]) -> tuple[Tensor, ...]:
        total = sum((w * up).sum() for w, up in zip(weights, upstream, strict=True))
        return torch.autograd.grad(total, list(named.values()))

    for i, (one, two) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(own[i](batch), two, rtol=1e-10, atol=1e-12)  # alone, with the noise meant for it
    for name, one, two in zip(named, gradients(found), gradients(expected), strict=True):
        assert two.any(), name
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12, msg=name)


def test_straight_through_rounds_and_keeps_the_gradient() -> None:
    contexts, (router,) = made(straight_through=True)
    weights = router(RoutingBatch(rows=torch.arange(3), tasks=torch.tensor([0, 1, -1])))
    hidden = torch.relu(contexts.first(contexts.vectors[:2]))
    p = torch.sigmoid(torch.einsum("hsd,ud->uhs", router.output, hidden) + router.bias)
    ones = (p >= 0.5).double()
    ones = torch.where(ones.any(-1, keepdim=True), ones, 1.0)
    torch.testing.assert_close(weights[:2].detach(), ones / ones.sum(-1, keepdim=True))
    assert torch.equal(weights[2], router.even)
    through = p + (ones - p).detach()
    upstream = torch.randn_like(p)
    (one,) = torch.autograd.grad((weights[:2] * upstream).sum(), router.output)
    (two,) = torch.autograd.grad((through / through.sum(-1, keepdim=True) * upstream).sum(), router.output)
    assert two.any()
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_routing_begins_next_to_uniform() -> None:
    contexts = Contexts(config(), TASKS)
    draw_contexts(contexts)
    table = routers["context-mhr"](config(), TASKS, contexts=contexts).table()
    assert 0 < (table - 1 / 3).abs().max() < 1e-2


def test_a_context_is_what_an_embedding_has_apart_from_the_mean() -> None:
    contexts = Contexts(config(), TASKS)
    given = {task: 7 * embedding(task, SIZE) for task in TASKS}
    contexts.put(given, center=True)
    units = torch.stack([e / e.norm() for e in given.values()])
    left = units - units.mean(0)
    torch.testing.assert_close(contexts.center, units.mean(0))
    torch.testing.assert_close(contexts.vectors.detach(), left / left.norm(dim=1, keepdim=True) * SIZE**0.5)
    # That of a new task is measured from the same mean.
    contexts.set_tasks([*TASKS, "wic"], [0, 1, 2, None])
    new = embedding("wic", SIZE)
    contexts.put({"wic": new})
    left = new / new.norm() - units.mean(0)
    torch.testing.assert_close(contexts.vectors[3].detach(), left / left.norm() * SIZE**0.5)
    torch.testing.assert_close(contexts.center, units.mean(0))


def test_the_only_task_is_not_the_mean() -> None:
    contexts = Contexts(config(), ["boolq"])
    draw_contexts(contexts, center=True)
    assert contexts.knows(0)
    assert not contexts.center.any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wic": torch.ones(SIZE)}, "the context of task 'wic' is given, which is no task of the bank: add it first"),
        ({"rte": torch.ones(4)}, r"the context of task 'rte' has shape \(4,\), expected \(5,\): take the encoder"),
        ({"rte": torch.zeros(SIZE)}, "the context of task 'rte' is zero or not finite, expected the embedding"),
        ({"rte": torch.full((SIZE,), torch.nan)}, "the context of task 'rte' is zero or not finite"),
        ({"rte": torch.ones(SIZE), "copa": torch.ones(SIZE)}, "the context of task 'rte' is the mean of those of all"),
    ],
)
def test_embeddings_that_do_not_fit_are_an_error_and_change_nothing(given: dict[str, Tensor], said: str) -> None:
    contexts = Contexts(config(), TASKS)
    with pytest.raises(TaskError, match=said):
        contexts.put(given, center=True)
    assert not contexts.vectors.any()
    assert not any(map(contexts.knows, range(3)))


def adapted(**settings: Any) -> Any:
    model = tiny_model("bert-encoder")
    return model, mhr.attach(model, config(n_heads=4, **settings), TASKS)


def test_a_task_without_a_context_is_refused_or_routed_uniformly() -> None:
    model, bank = adapted()
    said = "task 'rte' has no context, from which method 'context-mhr' routes: give it one with model.mhr.set_contexts"
    with pytest.raises(TaskError, match=said):
        bank.for_batch(["rte"])
    bank.set_contexts({"rte": embedding("rte", SIZE)})
    assert bank.for_batch(["rte", "copa"], unseen="uniform").tasks.tolist() == [1, -1]
    assert all(torch.equal(w[0], torch.full_like(w[0], 1 / 3)) for w in bank.weights().values())
    assert not any(torch.equal(w[1], w[0]) for w in bank.weights().values())
    with pytest.raises(TaskError, match="task 'copa' has no context"):
        model(**random_batch(model), task_ids=["rte", "copa", "rte", "rte"])


def test_contexts_are_refused_where_routing_is_computed_from_none() -> None:
    bank = mhr.attach(tiny_model("bert-encoder"), AdapterConfig(), TASKS)
    with pytest.raises(ConfigError, match="contexts are given, but method 'mhr' routes by none: leave them out"):
        bank.set_contexts({"rte": torch.ones(SIZE)})


def test_a_learnt_context_is_trained_and_an_embedding_is_not() -> None:
    for kind in ("learnt", "definition"):
        model, bank = adapted(router={"context": kind})
        draw_contexts(bank.contexts)
        randomise(bank)
        model.train()
        model(**random_batch(model), task_ids=["rte", "copa", "rte", "rte"])[0].square().mean().backward()
        gradient = bank.contexts.vectors.grad
        assert (gradient is not None) == (kind == "learnt")
        assert bank.contexts.first.weight.grad.any()
    assert gradient is None
    model, bank = adapted(router={"context": "learnt"})
    bank.add_tasks(["wic"])
    assert bank.contexts.vectors[3].detach().any()
    assert bank.contexts.vectors.requires_grad


@pytest.mark.parametrize(
    ("router", "said"),
    [
        ({"context": "name"}, r"router\.context is 'name', expected one of definition, shots, learnt"),
        ({"context": "learnt", "encoder": "x"}, r"router\.encoder is 'x', but a learnt context is no embedding"),
        ({"shots": 8}, r"router\.shots is 8, but the context is 'definition': leave it out"),
        ({"hidden": 0}, r"router\.hidden is 0, expected an integer of at least 1"),
    ],
)
def test_settings_that_do_not_go_together(router: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(method="context-mhr", router=router)
