"""Supported, not supported or undecided, and the power beside it."""

from __future__ import annotations

import numpy as np
import pytest

from mhr.analysis.compare import Paired, paired
from mhr.analysis.power import power
from mhr.analysis.seed_tests import t_test
from mhr.analysis.verdicts import GAIN, SAME, Question, judge

SPREAD = np.array([0.002, -0.002, 0.001, -0.001, 0.0])[:, None] + np.zeros((1, 3))


def verdict(mean: float, kind: str = GAIN, matters: float | None = 0.02, wide: float = 1.0) -> str:
    (found,) = judge([(Question("", "a", "b", kind, matters), paired(mean + wide * SPREAD))])
    return found.verdict


def test_a_gain() -> None:
    assert verdict(0.03) == verdict(0.005) == "supported"
    assert verdict(-0.03) == "not supported"
    assert verdict(0.0) == "not supported"  # surely less than would matter
    assert verdict(0.01, wide=10) == "undecided"
    assert verdict(0.0, matters=None) == "undecided"
    assert verdict(-0.03, matters=None) == "not supported"


def test_sameness() -> None:
    assert verdict(0.005, SAME) == "supported"
    assert verdict(0.03, SAME) == verdict(-0.03, SAME) == "not supported"
    assert verdict(0.02, SAME) == verdict(0.0, SAME, wide=20) == "undecided"


def test_a_single_seed_decides_nothing() -> None:
    for kind in (GAIN, SAME):
        (found,) = judge([(Question("", "a", "b", kind), paired(np.full((1, 5), 0.5)))])
        assert (found.verdict, found.p, found.power) == ("undecided", None, None)


def test_questions_that_belong_together_are_corrected_for_their_number() -> None:
    asked = Question("", "a", "b", matters=0.006)
    weak = paired(0.004 + 1.8 * SPREAD)
    assert judge([(asked, weak)])[0].verdict == "supported"
    together = judge([(asked, weak)] * 4)
    assert together[0].verdict == "undecided"
    assert weak.p is not None
    assert weak.expected_spread is not None
    assert together[0].p == pytest.approx(4 * weak.p)
    assert together[0].power == pytest.approx(power(0.006, weak.expected_spread, 5, 0.05 / 4))


def test_what_is_written_down() -> None:
    told = judge([(Question("MHR above Poly", "mhr", "poly"), paired(0.03 + SPREAD))])[0].to_json()
    assert told["verdict"] == "supported"
    assert told["tasks"] == 3
    assert len(told["by_seed"]) == 5
    assert told["interval"][0] < told["difference"] < told["interval"][1]


def test_the_rule_rarely_supports_even_one_of_several_gains_that_are_not_there() -> None:
    """With the variance components of the first study, 5 seeds and 12 tasks; three gains and, on its border, a sameness."""
    random, draws, alarms = np.random.default_rng(5), 150, 0
    parts = ((0.008, 0.071, 0.0), (0.026, 0.117, 0.0), (0.048, 0.123, 0.0), (0.009, 0.106, 0.02))
    for _ in range(draws):
        asked = []
        for seeds, residual, mean in parts:
            means = mean + random.normal(0, seeds, 5) + random.normal(0, residual / 12**0.5, 5)
            found = Paired(float(means.mean()), 12, tuple(means), t_test(means), None, None, None)
            asked.append((Question("", "a", "b", SAME if mean else GAIN), found))
        alarms += any(found.verdict == "supported" for found in judge(asked))
    assert alarms / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
