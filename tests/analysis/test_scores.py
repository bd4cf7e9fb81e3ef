"""Contestants side by side: where they meet, their means and spreads, and how far they are apart."""

from __future__ import annotations

import pytest

from mhr.analysis.scores import Score, Scores
from mhr.errors import DataError


def scores(values: dict[str, dict[str, dict[str | None, float]]], **more: object) -> Scores:
    found = Scores()
    found.add(
        Score(contestant, task, value, "accuracy", seed, category=task[0], **more)
        for contestant, tasks in values.items()
        for task, seeds in tasks.items()
        for seed, value in seeds.items()
    )
    return found


def test_they_are_compared_where_they_meet() -> None:
    found = scores({"a": {"x1": {None: 0.5}, "x2": {None: 0.6}}, "b": {"x2": {None: 0.7}, "y": {None: 0.1}}})
    assert found.contestants == ["a", "b"]
    assert found.tasks == ["x1", "x2", "y"]
    assert found.meeting() == ["x2"]
    assert [s.contestant for s in found.standings(found.meeting())] == ["b", "a"]
    assert found.by_category == {"x": ["x1", "x2"], "y": ["y"]}


def test_another_metric_is_no_meeting() -> None:
    found = scores({"a": {"x": {None: 0.5}}})
    found.add([Score("b", "x", 0.5, "exact_match")])
    assert found.metric("x") is None
    assert found.meeting() == []
    assert found.standings([]) == []


def test_means_are_taken_seed_by_seed() -> None:
    found = scores(
        {
            "a": {"x": {"1": 0.2, "2": 0.4}, "y": {"1": 0.6, "2": 0.6}},
            "b": {"x": {"1": 0.1, "2": 0.3}, "y": {"1": 0.5, "2": 0.5}},
        }
    )
    mean, spread, seeds = found.mean("a", ["x", "y"])
    assert (mean, spread, seeds) == (pytest.approx(0.45), pytest.approx(0.05 * 2**0.5), 2)
    first, second = found.standings(["x", "y"])
    assert first.contestant == "a"
    assert first.behind is None
    assert second.behind is not None
    assert second.behind.difference == pytest.approx(-0.1)
    assert (second.behind.worse, second.behind.seeds) == (2, 2)
    assert second.p == second.behind.p == pytest.approx(2 / 4)  # equal in both seeds: no surer than their signs
    assert first.p is None
    assert (first.best_on, second.best_on) == (2, 0)


def test_what_no_seed_was_drawn_for_stands_beside_every_seed() -> None:
    found = scores({"a": {"x": {"1": 0.2, "2": 0.6}}, "b": {"x": {None: 0.3}}, "c": {"x": {"7": 0.5}}})
    beside = found.paired("a", "b", ["x"])
    assert beside is not None
    assert (beside.seeds, beside.difference) == (2, pytest.approx(0.1))
    other = found.paired("a", "c", ["x"])  # seeds that have nothing to do with each other
    assert other is not None
    assert (other.seeds, other.difference) == (1, pytest.approx(-0.1))
    found = scores({"a": {"x": {"1": 0.2, "2": 0.6, "3": 0.9}}, "b": {"x": {"1": 0.1, "2": 0.4, "4": 0.0}}})
    shared = found.paired("a", "b", ["x"])
    assert shared is not None
    assert shared.by_seed == pytest.approx((0.1, 0.2))


def test_categories_count_once() -> None:
    found = scores({"a": {"x1": {None: 0.0}, "x2": {None: 0.0}, "y1": {None: 0.9}}})
    (standing,) = found.standings(found.tasks)
    assert standing.mean == pytest.approx(0.3)
    assert standing.by_category == pytest.approx(0.45)


def test_what_was_trained_on_another_task_is_transfer() -> None:
    found = Scores()
    found.add(
        [Score("a", "y", 0.4, "accuracy", "1", trained_on="x"), Score("a", "x", 0.9, "accuracy", "1", trained_on="x")]
    )
    assert found.tasks == ["x"]
    assert [(s.trained_on, s.task) for s in found.transfer] == [("x", "y")]


def test_a_second_score_is_refused() -> None:
    found = scores({"a": {"x": {"1": 0.5}}})
    with pytest.raises(DataError, match="two scores for a on task 'x', seed 1"):
        found.add([Score("a", "x", 0.6, "accuracy", "1")])


def test_uneven_numbers_of_examples() -> None:
    found = scores({"a": {"x": {None: 0.5}, "y": {None: 0.5}}}, n=100)
    found.add([Score("b", "x", 0.5, "accuracy", n=50), Score("b", "y", 0.5, "accuracy", n=100)])
    assert found.uneven == ["x"]
