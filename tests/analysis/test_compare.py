"""Paired comparison: what is paired, and what counts once."""

from __future__ import annotations

import pytest

from mhr.analysis.compare import compare


def test_pairs_that_both_have() -> None:
    a = {("x", 1): 0.5, ("x", 2): 0.7, ("y", 1): 0.2, ("y", 2): 0.3, ("only a", 1): 1.0}
    b = {("x", 1): 0.4, ("x", 2): 0.5, ("y", 1): 0.3, ("y", 2): 0.2}
    found = compare(a, b)
    assert found is not None
    assert (found.seeds, found.tasks) == (2, 2)
    assert found.by_seed == pytest.approx((0.0, 0.15))
    assert found.difference == pytest.approx(0.075)
    assert found.spread == pytest.approx(0.15 / 2**0.5)
    assert found.parts is not None
    assert found.expected_spread == pytest.approx(found.parts.of_seed_means(2))
    assert found.p == pytest.approx(0.5)
    assert found.interval is not None
    assert found.interval[0] < 0.075 < found.interval[1]
    assert compare(a, {("z", 1): 0.0}) is None


def test_a_single_seed_tells_nothing_of_others() -> None:
    found = compare({(f"t{i}", 1): 0.9 for i in range(9)}, {(f"t{i}", 1): 0.1 for i in range(9)})
    assert found is not None
    assert (found.p, found.p_flips, found.interval, found.parts, found.spread) == (None,) * 5


def test_seeds_that_lack_a_task_are_left_out() -> None:
    a = {("x", 1): 0.5, ("y", 1): 0.5, ("x", 2): 0.5, ("y", 2): 0.5, ("x", 3): 9.0}
    found = compare(a, dict.fromkeys(a, 0.25))
    assert found is not None
    assert found.by_seed == (0.25, 0.25)
    assert (found.better, found.worse) == (2, 0)


def test_tasks_with_seeds_of_their_own_are_one_seed() -> None:
    a = {("x", 1): 0.5, ("x", 2): 0.7, ("y", 3): 0.3}
    found = compare(a, dict.fromkeys(a, 0.0))
    assert found is not None
    assert found.by_seed == pytest.approx((0.45,))


def test_seeds_that_happen_to_be_alike_are_not_expected_to_be_so_again() -> None:
    a = {("x", 1): 0.1, ("y", 1): 0.3, ("x", 2): 0.3, ("y", 2): 0.1}
    found = compare(a, dict.fromkeys(a, 0.0))
    assert found is not None
    assert found.spread == pytest.approx(0.0)
    assert found.expected_spread == pytest.approx(0.2 / 2**0.5)
