"""Measures of how tasks are routed, on weights that are known."""

from __future__ import annotations

import math

import pytest
import torch

from mhr.analysis.routing import Routing

TASKS = ["boolq", "rte", "wic", "cb"]


def of(*rows: list[float]) -> Routing:
    """One layer, one head: a row of weights per task."""
    return Routing(TASKS[: len(rows)], {"layer": torch.tensor(rows)[:, None]})


def test_uniform_routing() -> None:
    found = of([0.25] * 4, [0.25] * 4)
    assert not found.varied
    assert found.entropy == {"layer": pytest.approx(1.0)}
    assert found.effective_skills == {"layer": pytest.approx(4.0)}
    assert found.discreteness == {"layer": pytest.approx(0.0)}
    assert found.most_alike() == {}


def test_one_skill_a_task() -> None:
    found = of([1.0, 0.0], [0.0, 1.0])
    assert found.varied
    assert found.entropy == {"layer": 0.0}
    assert found.effective_skills == {"layer": pytest.approx(1.0)}
    assert found.discreteness == {"layer": pytest.approx(1.0)}
    assert float(found.similarity[0, 1]) == pytest.approx(-1.0)


def test_two_skills_of_four() -> None:
    found = of([0.5, 0.5, 0.0, 0.0])
    assert found.entropy == {"layer": pytest.approx(math.log(2) / math.log(4))}
    assert found.effective_skills == {"layer": pytest.approx(2.0)}
    assert found.discreteness == {"layer": pytest.approx((0.5 - 0.25) / 0.75)}


def test_a_single_skill_leaves_nothing_to_choose() -> None:
    found = Routing(TASKS, {})
    assert not found.varied
    assert found.stacked.shape == (4, 1, 1, 1)
    assert found.entropy == {}


def test_means_by_task_and_layer() -> None:
    sharp, even = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    found = Routing(TASKS[:2], {"a": sharp[:, None], "b": even[:, None]})
    assert found.entropy == {"a": pytest.approx(0.5), "b": pytest.approx(1.0)}
    assert found.by_task["boolq"] == {"entropy": 0.5, "effective_skills": 1.5, "discreteness": 0.5}
    assert found.by_task["rte"] == {"entropy": 1.0, "effective_skills": 2.0, "discreteness": 0.0}
    torch.testing.assert_close(found.by_skill, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))


def test_similarity_and_the_most_alike() -> None:
    logits = torch.tensor([[3.0, -3.0, 0.0], [-3.0, 3.0, 0.0], [2.7, -2.7, 0.0], [0.0, 0.0, 0.0]])
    weights = torch.sigmoid(logits) / torch.sigmoid(logits).sum(-1, keepdim=True)
    found = Routing(TASKS, {"layer": weights[:, None]})
    similarity = found.similarity
    assert torch.equal(similarity.diagonal(), torch.ones(4).double())
    torch.testing.assert_close(similarity, similarity.T)
    assert similarity[0, 2] > 0.99
    assert similarity[0, 1] < -0.9
    torch.testing.assert_close(similarity[3, :3], torch.zeros(3).double())  # uniform: like no other
    alike = found.most_alike(2)
    assert [alike[task][0][0] for task in ("boolq", "wic")] == ["wic", "boolq"]
    assert alike["boolq"][0][1] == pytest.approx(float(similarity[0, 2]))
    assert len(alike["boolq"]) == 2


def test_some_of_many_tasks_are_spread_over_their_order() -> None:
    weights = torch.rand(10, 2, 3)
    every = Routing([f"task{i}" for i in range(10)], {"a": weights, "b": weights + 1})
    some = every.spread(4)
    assert some.tasks == ["task0", "task2", "task5", "task7"]
    assert torch.equal(some.weights["b"], weights[[0, 2, 5, 7]] + 1)
    assert every.spread(10) is every
