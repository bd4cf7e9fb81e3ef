"""Paired comparison and its permutation test."""

from __future__ import annotations

import itertools

import pytest

from mhr.analysis.compare import compare, sign_flip


def test_the_exact_p_value_counts_all_signs() -> None:
    differences = [0.3, -0.1, 0.2, 0.4]
    totals = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert sign_flip(differences) == sum(t >= 0.8 - 1e-9 for t in totals) / 16
    assert sign_flip([1.0] * 5) == 2 / 32
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([0.2, 0.0]) == 1.0


def test_the_drawn_p_value_is_near_the_exact_one() -> None:
    differences = [0.1, 0.2, -0.15, 0.3, 0.05, -0.1, 0.12, 0.2, -0.05, 0.1, 0.0, 0.07, 0.02]
    exact = sign_flip(differences)
    drawn = sign_flip([*differences, 1e-9, -1e-9])  # too many to try every sign
    assert drawn == pytest.approx(exact, abs=0.02)
    assert 1 / 20_001 <= sign_flip([1.0] * 40) < 1e-3


def test_pairs_that_both_have() -> None:
    a = {("x", 1): 0.5, ("x", 2): 0.7, ("y", 1): 0.2, ("only a", 1): 1.0}
    b = {("x", 1): 0.4, ("x", 2): 0.7, ("y", 1): 0.3}
    found = compare(a, b)
    assert found is not None
    assert (found.better, found.worse, found.n) == (1, 1, 3)
    assert found.difference == pytest.approx(0.0)
    assert found.by_seed == pytest.approx([0.0, 0.0])
    assert found.p == 1.0
    assert compare(a, {("z", 1): 0.0}) is None
