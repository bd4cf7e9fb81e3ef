"""The search for weights: it finds the best of a smooth score, moves along plateaus, and does the same each time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mhr.errors import ConfigError, MergeError
from mhr.weight_search import WeightSearch, find_weights

TRUTH = np.array([0.7, 0.1, 0.45, 0.0])


def smooth(weights: list[float]) -> float:
    return -float(np.square(np.array(weights) - TRUTH).sum())


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_best_of_a_smooth_score(seed):
    found = find_weights(smooth, 4, steps=150, seed=seed)
    assert found.weights == pytest.approx(TRUTH, abs=0.05)
    assert found.score == max(found.scores) == smooth(found.weights)
    assert len(found.scores) == 150


def test_it_stays_within_its_bounds():
    goal = np.array([0.9, -0.4, 0.1, 3.0])
    search = WeightSearch(4, [[0.0] * 4, [0.25] * 4], bounds=(-1.5, 1.5))
    for _ in range(400):
        weights = np.array(search.ask())
        assert np.abs(weights).max() <= 1.5
        search.tell(-float(np.square(weights - goal).sum()))
    assert search.weights == pytest.approx(goal.clip(max=1.5), abs=0.02)


def test_few_tries_are_better_than_as_many_drawn_at_random():
    drawn = [max(smooth(w) for w in np.random.default_rng(s).uniform(size=(40, 4)).tolist()) for s in range(20)]
    found = [find_weights(smooth, 4, steps=40, seed=s).score for s in range(20)]
    assert np.mean(found) > 0.5 * np.mean(drawn)


def test_it_moves_on_where_scores_are_equal():
    """A metric of ten examples is a staircase."""
    found = [find_weights(lambda w: math.floor(10 * smooth(w)) / 10, 4, steps=60, seed=s).score for s in range(10)]
    assert sum(score == -0.1 for score in found) >= 9


def test_the_start_is_the_first_try_and_the_first_of_equal_ones_is_taken():
    tries: list[list[float]] = []
    found = find_weights(lambda w: tries.append(w) or 1.0, 3, steps=5, seed=1, bounds=(-1.5, 1.5), start=[0, 0, 0])
    assert tries[0] == found.weights == [0, 0, 0]
    assert all(abs(w) <= 1.5 for one in tries for w in one)
    assert find_weights(lambda w: 0.0, 4, steps=1).weights == [0.25] * 4


def test_it_begins_at_the_best_of_its_starts_and_tries_the_other_side_of_a_step_that_was_worse():
    search = WeightSearch(4, [[0.0] * 4, [0.25] * 4], bounds=(-1.5, 1.5))
    assert search.ask() == [0.0] * 4
    search.tell(-1.0)
    assert search.ask() == [0.25] * 4
    search.tell(-2.0)
    assert search.weights == [0.0] * 4
    assert search.score == -1.0
    tries = []
    for score in (-0.9, -1.0, -1.0, 0.0):
        tries.append(np.array(search.ask()))
        search.tell(score)
    here, one, other = tries[:3]
    inside = (np.abs(one) < 1.5) & (np.abs(other) < 1.5)  # neither was clipped
    assert inside.any()
    np.testing.assert_allclose((other - here)[inside], -math.exp(-0.2) * (one - here)[inside])
    assert search.score == 0.0


def test_the_same_seed_makes_the_same_tries():
    one, two = (find_weights(smooth, 4, steps=30, seed=7) for _ in range(2))
    assert one == two
    assert one.scores != find_weights(smooth, 4, steps=30, seed=8).scores


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"steps": 0}, ConfigError, "steps are 0"),
        ({"size": 0}, ConfigError, "at least 1 weight"),
        ({"bounds": (1.0, 0.0)}, ConfigError, "the lower one first"),
        ({"bounds": (0.0, math.inf)}, ConfigError, "two finite numbers"),
        ({"start": [0.0]}, ConfigError, "start has 1 numbers for 2 weights"),
        ({"score": lambda w: math.nan}, MergeError, "the score of weights 0.5, 0.5 is not a number"),
    ],
)
def test_what_cannot_be_searched(given, error, match):
    asked = {"score": lambda w: 0.0, "size": 2, "steps": 3, "seed": 0, **given}
    with pytest.raises(error, match=match):
        find_weights(asked.pop("score"), asked.pop("size"), **asked)


def test_a_score_of_minus_infinity_is_the_worst():
    found = find_weights(lambda w: -math.inf if w[0] > 0.5 else w[0], 1, steps=40)
    assert 0.4 < found.weights[0] <= 0.5 + 1e-9 or found.score > 0.4
